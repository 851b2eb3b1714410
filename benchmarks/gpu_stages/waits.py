"""Where the host waits for the device: by file and line of our own code."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose answer the host has to read: what a CPU can tell of them.
READ = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_consecutive", "_unique2")


def waits(work: Callable[[], Any], device: torch.device) -> Counter[str]:
    """How often at each place: as the driver says on CUDA, as the operations let expect elsewhere."""
    return _warned(work) if device.type == "cuda" else _dispatched(work)


def _warned(work: Callable[[], Any]) -> Counter[str]:
    found: Counter[str] = Counter()

    def showed(message: Warning | str, *others: Any, **further: Any) -> None:
        if "called a synchronizing" in str(message):
            found[here()] += 1

    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = showed
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            warnings.showwarning = before
    return found


class _Reading(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READ:
            self.found[here()] += 1
        return func(*args, **kwargs or {})


def _dispatched(work: Callable[[], Any]) -> Counter[str]:
    with _Reading() as mode:
        work()
    return mode.found


def here() -> str:
    """The deepest line of redraft that is being carried out; what the backward pass does is the line that asked for it."""
    for frame in reversed(traceback.extract_stack(sys._getframe(1))):
        if "/redraft/" in frame.filename and "site-packages" not in frame.filename:
            return f"{frame.filename.rpartition('/redraft/')[2]}:{frame.lineno}"
    return "the backward pass"
