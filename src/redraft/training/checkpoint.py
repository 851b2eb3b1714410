"""Checkpoints: weights, AdamW moments, moving average, teacher and step, in one safetensors file.

The same names stand for the same tensors in the checkpoints of several ranks (sharded.py), so that a run may be begun on one
and continued on many, or the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from redraft.errors import UserError
from redraft.files import write_tensors
from redraft.network.device import accelerated
from redraft.training.distributed.parallel import fill, full_tensor, to_local
from redraft.training.distributed.ranks import here

STATE = "state.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Cursor:
    """Where a run stands: steps done, and windows of data that were passed over (after a rollback)."""

    step: int
    shift: int = 0


def state(
    network: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor], teacher: nn.Module | None
) -> dict[str, Tensor]:
    """Everything that steps change, by name: the tensors themselves, or zeros for moments that have not begun."""
    tensors = {f"model.{name}": p.detach() for name, p in network.named_parameters()}
    for name, parameter in _trained(network):
        moments = optimizer.state[parameter]
        moments.setdefault("step", torch.tensor(0.0, device=to_local(parameter).device))
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = moments.setdefault(moment, torch.zeros_like(parameter.detach()))
    if average:
        tensors |= {f"ema.{name}": mean for (name, _), mean in zip(network.named_parameters(), average, strict=True)}
    if teacher is not None:
        tensors |= {f"teacher.{name}": p.detach() for name, p in teacher.named_parameters()}
    return tensors


def count(network: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Tell AdamW how many steps its moments have seen."""
    for _, parameter in _trained(network):
        moments = optimizer.state[parameter]
        moments["step"] = torch.tensor(float(step), device=to_local(parameter).device)


def save(path: Path, cursor: Cursor, tensors: dict[str, Tensor]) -> None:
    """In one file, by the first rank; all gather."""
    gathered, first = dict[str, Tensor](), here().first
    for name, tensor in tensors.items():
        one = full_tensor(tensor)
        if first:
            gathered[name] = one.cpu()
    if first:
        write(path, cursor, gathered)


def write(path: Path, cursor: Cursor, tensors: dict[str, Tensor]) -> None:
    shift = {"shift": str(cursor.shift)} if cursor.shift else {}
    write_tensors(path, tensors, {"format": "pt", "step": str(cursor.step), **shift})


class Background:
    """One piece of writing at a time in a thread, while training goes on."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.running: Future[str | None] | None = None

    @property
    def ready(self) -> bool:
        """Whether one has been written, or has failed, and waits to be collected."""
        return self.running is not None and self.running.done()

    def collect(self) -> str | None:
        """Wait for the one that is being written, if any. Why it failed, in a few words; all ranks get the same answer."""
        running, self.running = self.running, None
        return None if running is None else running.result()


@final
class Writer(Background):
    """Writes one state file at a time while training goes on: what `sharded.Saver` is to several ranks, for one device.

    The state is first copied into buffers of the host, which are kept. Of a GPU they are pinned, and the copies are queued
    before the steps that follow, which so cannot change what is written; the thread waits for them, not the loop.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.buffers = path, dict[str, Tensor]()

    def begin(self, cursor: Cursor, tensors: dict[str, Tensor]) -> None:
        """Copy the state aside, then write it in the background. The one before must be `collect`ed."""
        assert self.running is None
        for name, tensor in tensors.items():
            if name not in self.buffers:
                self.buffers[name] = torch.empty_like(tensor, device="cpu", pin_memory=accelerated(tensor.device))
            self.buffers[name].copy_(tensor, non_blocking=True)
        device = next(iter(tensors.values())).device
        copied = torch.accelerator.current_stream(device).record_event().synchronize if accelerated(device) else None
        self.running = self.thread.submit(self._write, cursor, copied)

    def close(self) -> None:
        """Returns when nothing is being written any more."""
        self.thread.shutdown()

    def _write(self, cursor: Cursor, copied: Callable[[], object] | None) -> str | None:
        if copied is not None:
            copied()
        try:
            write(self.path, cursor, self.buffers)
        except UserError as error:
            return str(error)
        return None


def cursor_of(path: Path) -> Cursor:
    """Where the run of a state file stands. `UserError` where the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return Cursor(int(file.metadata()["step"]), int(file.metadata().get("shift", 0)))
    except (SafetensorError, KeyError, OSError) as error:
        raise damaged(path, error) from None


def load(path: Path, tensors: dict[str, Tensor]) -> Cursor:
    """Fill `tensors` in place, each rank its part. `UserError` where the file is not this run's whole state."""
    try:
        with safe_open(path, "pt") as file, torch.no_grad():
            for name, tensor in tensors.items():
                fill(tensor, file.get_tensor(name))
    except (SafetensorError, KeyError, RuntimeError, OSError) as error:
        raise damaged(path, error) from None
    return cursor_of(path)


def damaged(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} is not a whole checkpoint of this run ({error}); delete it to start over")


def _trained(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad)
