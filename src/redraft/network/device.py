"""Where a network computes, and in which number format its matrices multiply."""

from __future__ import annotations

import torch

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
