"""The accelerator that torch sees here, and what is compiled for it: one place, so that code elsewhere names no device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch


def accelerated(device: torch.device | str) -> bool:
    """Whether it is the kind of accelerator that torch sees here: one with kernels to fuse and a host that runs ahead."""
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return there is not None and torch.device(device).type == there.type


@lru_cache
def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its module, compiled once for all shapes."""
    return torch.compile(function, dynamic=True)
