"""Where a network computes, and in which number format its matrices multiply."""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from redraft.accelerator import accelerated
from redraft.errors import UserError, unknown

# float64 is for comparing computations that should be equal; weights are then kept in it too.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
NO_FLOAT64 = ("mps",)  # accelerators on which tokens cannot be drawn: categoricals are drawn in float64


def accelerator() -> torch.device | None:
    """The accelerator that torch sees here and that has float64; None where there is none."""
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if there is None or there.type in NO_FLOAT64 else there


def pick_device(name: str) -> torch.device:
    """ "auto": the accelerator if there is one, else the CPU. `UserError` for what is not there, with the devices that are."""
    there = accelerator()
    if name == "auto":
        return there or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}. {_here(there)}") from None
    if device.type in NO_FLOAT64:
        raise UserError(f"device {name!r} is not used: it has no float64, in which tokens are drawn. {_here(there)}")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"device {name!r} is not there. {_here(there)}") from None
    return device


def _here(there: torch.device | None) -> str:
    """The devices of this machine, to choose from."""
    if there is None:
        return "torch sees no accelerator that it could use here. Try: auto, cpu"
    count = torch.accelerator.device_count()
    numbered = [f"{there.type}:{number}" for number in range(count)]
    return f"This machine has {count} of the kind {there.type}. Try: auto, cpu, {', '.join(numbered)}"


def device_name(device: torch.device) -> str:
    """The name of the hardware: of an accelerator as its driver gives it, of a CPU its architecture."""
    ask = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return str(ask(device)) if ask is not None else platform.machine() if device.type == "cpu" else device.type


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
