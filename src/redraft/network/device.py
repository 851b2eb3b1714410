"""Device and compute dtype of a network."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from redraft.accelerator import NO_FLOAT64, accelerated, accelerator
from redraft.errors import UserError, unknown

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
# float64 is for comparing computations that should be equal; weights are then kept in it too.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


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


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A CPU tensor, copied to the device; to an accelerator asynchronously, from pinned memory."""
    if tensor.device.type == "cpu" and accelerated(device):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def flat_places(where: Tensor) -> Tensor:
    """[B, L] bool -> [R] places in it, row * L + place. A device that is not the host is waited for."""
    return where.flatten().nonzero()[:, 0]


def few_shapes(size: int, most: int, device: torch.device) -> int:
    """A dynamic size of at most `most`; except on a CPU it is rounded up to a multiple of
    128, so that few shapes are compiled. Callers mask the padding."""
    return size if device.type == "cpu" else min(most, -(-size // 128) * 128)


def keep_freed_memory() -> None:
    """Let the C library keep what tensors on the CPU free, instead of handing it back and faulting it in again.

    glibc gives memory back above a threshold that follows the largest block it has freed, up to 32 MiB. One block of nearly
    that is freed here, its pages never touched. Measured: small batches decode a fifth faster.
    """
    torch.empty(31 << 20, dtype=torch.uint8)
