"""Where a network computes, and in which number format its matrices multiply."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from redraft.errors import UserError, unknown

# float64 is for comparing computations that should be equal; weights are then kept in it too.
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
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


@contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """While the block lasts, an operation gives the same bits at every run of the same program, or raises `RuntimeError`.

    On a GPU some add up by atomics otherwise (the backward passes of attention, of gathers), cuBLAS shares its buffers among
    streams, and compiled kernels are chosen by the clock. cuBLAS looks at its variable when a process first multiplies on a
    GPU: one that did so before must have set it. `wanted` = False changes nothing.
    """
    if not wanted:
        yield
        return
    from torch._inductor import config as inductor

    cudnn, variable = torch.backends.cudnn, os.environ.get(CUBLAS)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    chosen = cudnn.deterministic, cudnn.benchmark
    os.environ.setdefault(CUBLAS, ":4096:8")
    try:
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
        with inductor.patch(deterministic=True):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = chosen
        if variable is None:
            os.environ.pop(CUBLAS, None)


def accelerated(device: torch.device | str) -> bool:
    """Whether it is the kind of accelerator that torch sees here: one with kernels to fuse and a host that runs ahead."""
    return torch.accelerator.is_available() and torch.accelerator.current_accelerator() == torch.device(
        torch.device(device).type
    )


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
