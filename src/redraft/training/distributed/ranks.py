"""The ranks of a run and their collective operations. A single process is a run of one rank.

torchrun starts them and says in the environment who is who (environment.py).
Weights and gradients travel over the device's own backend. Numbers and decisions travel over gloo, from CPU to CPU, so
that no accelerator waits for them; the thread that writes checkpoints has a group to itself.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from redraft.errors import ASKED, LOST_RANK, MISTAKE, UserError
from redraft.training.distributed.environment import Told, mend, told

SILENT = 10.0  # seconds that ranks may look for each other without a word
LAST_WORD = 1.0  # seconds that the first rank has to say why
DEFAULT = (signal.SIG_DFL, signal.default_int_handler)
LOST = ("gloo", "Connection", "Timed out", "Broken pipe")  # what the message of a broken collective says


class Preempted(KeyboardInterrupt):
    """A rank was asked to end (SIGTERM, or Ctrl-C); all leave after the same step."""


@dataclass(frozen=True)
class Ranks:
    """This process is `rank` of `size`, of which `per_node` are on this machine. `asked`: signals to end that came; `heeding`:
    whether somebody looks at them, step by step."""

    rank: int = 0
    size: int = 1
    per_node: int = 1
    control: Any = None
    saving: Any = None
    patient: Any = None
    asked: list[int] = field(default_factory=list)
    heeding: list[bool] = field(default_factory=lambda: [False])

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """While the block lasts, it looks at `asked` by itself, Ctrl-C included (a program that has plans of its own for a
        signal keeps it). Outside, the first rank leaves as soon as it is asked, and the others lose it."""
        main = threading.current_thread() is threading.main_thread()
        free = [s for s in (signal.SIGTERM, signal.SIGINT) if main and signal.getsignal(s) in DEFAULT]
        before = {number: signal.signal(number, self.ask) for number in free}
        self.heeding[0] = True
        try:
            yield
        finally:
            self.heeding[0] = False
            for number, handler in before.items():
                signal.signal(number, handler)
            if not self.several:
                self.asked.clear()

    def ask(self, number: int, frame: object = None) -> None:
        """What a signal to end does. A second Ctrl-C does not wait for the step's end."""
        self.asked.append(number)
        if (self.first and not self.heeding[0] and len(self.asked) == 1) or self.asked.count(signal.SIGINT) > 1:
            raise Preempted

    @property
    def first(self) -> bool:
        """The one that prints, keeps the journal and writes the record."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.control is not None

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Each number added up over all ranks, in float64."""
        if not self.several:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return total.tolist()

    def gather(self, value: Any, group: Any = None) -> list[Any]:
        """The value of every rank, in their order."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=group or self.control)
        return values

    def tell(self, value: Any = None) -> Any:
        """The first rank's value, on every rank."""
        if not self.several:
            return value
        told = [value]
        dist.broadcast_object_list(told, src=0, group=self.control)
        return told[0]

    def copy(self, tensor: Tensor) -> None:
        """The first rank's numbers into everyone's tensor, on the CPU."""
        if self.several:
            dist.broadcast(tensor, src=0, group=self.control)

    def agree(self, error: UserError | None = None, patiently: bool = False) -> None:
        """An error of one rank becomes the same `UserError` on all of them; returns where there is none. `patiently`: what a
        rank does meanwhile may take long, and it is not lost."""
        errors = self.gather(None if error is None else str(error), self.patient if patiently else None)
        for rank, text in enumerate(errors):
            if text is not None:
                raise UserError(text if rank == 0 or len(set(errors)) == 1 else f"rank {rank}: {text}")


def is_lost(error: BaseException) -> bool:
    """Whether an error is that of a collective which another rank left."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in LOST)


@contextmanager
def rank_zero_errors(ranks: Ranks) -> Iterator[None]:
    """An error that ends a run of several ranks is printed once, in one line, by the first. With one rank it is re-raised.

    The process ends there and then: threads that write a checkpoint may wait long for a lost rank, and to take down an
    accelerator's group is to wait for all the others. Status 2 for what the user can mend, 75 for a lost rank, 130 where it
    was asked to leave, 1 with a traceback for all else. The others leave a little later, since torchrun ends all when the
    first does.
    """
    try:
        yield
    except (Exception, Preempted) as error:
        if not ranks.several:
            raise
        status = _status(error)
        if status == 1:
            traceback.print_exception(error)
        elif ranks.first:
            print(f"redraft: {_said(error)}", file=sys.stderr)
        else:
            time.sleep(LAST_WORD)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _status(error: BaseException) -> int:
    if isinstance(error, Preempted):
        return ASKED
    if isinstance(error, UserError):
        return MISTAKE
    return LOST_RANK if isinstance(error, RuntimeError) and is_lost(error) else 1


def _said(error: BaseException) -> str:
    if isinstance(error, Preempted):
        return "interrupted; the same command continues where it stopped"
    if isinstance(error, UserError):
        return str(error)
    why = re.sub(r"^\[.*?\] ", "", str(error).strip().splitlines()[0]).partition(". ")[0]
    return f"a rank was lost ({why}); the same command goes on from the last checkpoint"


_HERE = [Ranks()]  # the last is where we are


def here() -> Ranks:
    """The ranks that this process joined; it alone, if it joined none."""
    return _HERE[-1]


@contextmanager
def joined(timeout: float = 600.0) -> Iterator[Ranks]:
    """The ranks that torchrun started, while the block lasts; without torchrun, this process alone.

    `timeout`: seconds after which a rank that does not answer counts as lost (a machine that went without a word; a process
    that died is noticed at once). SIGTERM does not end a rank: it asks all of them to save and leave after their step.
    `UserError` where the ranks do not find each other. After an error nothing is taken down: that waits for the others.
    """
    place = told()
    if place is None:
        yield here()
        return
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(place.local % torch.accelerator.device_count())
    ranks = _joined(place, timeout)
    _HERE.append(ranks)
    before = signal.signal(signal.SIGTERM, ranks.ask)
    try:
        yield ranks
        dist.destroy_process_group()
    finally:
        signal.signal(signal.SIGTERM, before)
        _HERE.pop()


def _joined(place: Told, timeout: float) -> Ranks:
    waits = timeout, 10 * timeout, timeout + 7 * 86400  # for an answer, a checkpoint, a corpus
    with meeting(place):
        dist.init_process_group(timeout=timedelta(seconds=timeout))
        groups = [dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds)) for seconds in waits]
    return Ranks(place.rank, place.size, place.per_node, *groups)


@contextmanager
def meeting(place: Told) -> Iterator[None]:
    """While ranks look for each other: the first says whom it waits for when that takes long, and what a socket refuses is a
    `UserError` with what would help."""
    text = f"waiting for the other ranks, {place.size} in all, at {place.address}; if there are none, {mend()}"
    waiting = threading.Timer(SILENT, lambda: print(f"redraft: {text}", file=sys.stderr, flush=True))
    waiting.daemon = True
    if place.rank == 0:
        waiting.start()
    try:
        yield
    except (RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise UserError(
                f"{place.address} is in use, by another run or by what is left of one: choose another port "
                f"(torchrun --master-port), or {mend()}"
            ) from None
        raise UserError(
            f"the ranks did not find each other at {place.address} ({why}): {mend()}; where machines have several networks, "
            f"name the one that joins them by GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        ) from None
    finally:
        waiting.cancel()
