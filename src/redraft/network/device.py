"""Where a network computes, and in which number format its matrices multiply."""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.accelerator import accelerated
from redraft.errors import UserError, unknown

# float64 is for comparing computations that should be equal; weights are then kept in it too.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def pick_device(name: str) -> torch.device:
    """ "auto": an accelerator if torch sees one, else the CPU."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}. Try: auto, cpu") from None
    return device


def pick_dtype(name: str) -> torch.dtype:
    """In which a trained network multiplies: float32 or bfloat16. Logs are summed in float32 and draws made in float64 in
    either."""
    if name not in ("float32", "bfloat16"):
        raise unknown("precision", name, ("float32", "bfloat16"))
    return DTYPES[name]


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """What the host made, on the device. A GPU is not waited for: it reads from pages that stay where they are."""
    if tensor.device.type == "cpu" and accelerated(device):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def flat_places(where: Tensor) -> Tensor:
    """[B, L] bool -> [R] places in it, row * L + place. A device that is not the host is waited for."""
    return where.flatten().nonzero()[:, 0]


def few_shapes(size: int, most: int, device: torch.device) -> int:
    """A size that varies from call to call, of at most `most`: on a device that compiles for each, rounded up to a multiple of
    128, so that there are few; what fills it up is looked at by nobody."""
    return size if device.type == "cpu" else min(most, -(-size // 128) * 128)
