"""Peak memory of a piece of work: the accelerator's allocator, or the resident memory of this process."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak(device: torch.device) -> None:
    """From here on the peak is counted anew."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5")  # Linux: the peak of the resident set is set to what is resident now
    except OSError:
        return


def peak_bytes(device: torch.device) -> int | None:
    """Bytes: the most allocated on the accelerator, weights included, or the most that was resident in this process.

    None where the system does not tell.
    """
    if device.type != "cpu":
        return int(torch.accelerator.max_memory_allocated(device))
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
