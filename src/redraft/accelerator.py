"""Which accelerator PyTorch sees here and what is compiled for it: the one place that names devices."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

NO_FLOAT64 = ("mps",)  # accelerators on which tokens cannot be drawn: categoricals are drawn in float64


def accelerator() -> torch.device | None:
    """The accelerator that torch sees here and that has float64; None where there is none."""
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if there is None or there.type in NO_FLOAT64 else there


def accelerated(device: torch.device | str) -> bool:
    """Whether it is of that kind: one with kernels to fuse, and a host that runs ahead of it."""
    there = accelerator()
    return there is not None and torch.device(device).type == there.type


@lru_cache
def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its module, compiled once for all shapes."""
    return torch.compile(function, dynamic=True)
