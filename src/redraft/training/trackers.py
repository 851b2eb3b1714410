"""Experiment trackers: wandb, TensorBoard, trackio. They receive what the journal does; their failure never stops a run.

Each has a thread of its own and a queue that may overflow: what a tracker cannot take in time is dropped, and a tracker
that fails is told nothing more. The journal is the record; these are views of it.
"""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any, final

from redraft.errors import require, unknown

PROJECT = "redraft"
WAITING = 1000  # records that a tracker may be behind by
PATIENCE = 10.0  # seconds that the end of a run waits for each

Numbers = Mapping[str, float]


class Tracker(ABC):
    """A library that draws curves. Made, told and closed on one thread."""

    @abstractmethod
    def log(self, step: int, numbers: Numbers) -> None:
        """The numbers after `step` steps."""

    @abstractmethod
    def close(self, summary: Numbers) -> None:
        """The run has ended, with these numbers; empty where it was interrupted."""


@final
class Wandb(Tracker):
    """Weights & Biases. A run that continues goes on in the same curve; WANDB_MODE=offline needs no account."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        own: dict[str, Any] = {"name": folder.name, "id": _id(folder), "dir": str(folder), "config": dict(config)}
        self.run = wandb.init(project=PROJECT, resume="allow", **own)

    def log(self, step: int, numbers: Numbers) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self, summary: Numbers) -> None:
        self.run.summary.update(dict(summary))
        self.run.finish()


@final
class TensorBoard(Tracker):
    """Event files in the folder `tensorboard` of the run; steps that are trained again replace the old ones."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.make = lambda first: SummaryWriter(str(folder / "tensorboard"), purge_step=first)
        self.writer: Any = None

    def log(self, step: int, numbers: Numbers) -> None:
        self.writer = self.writer or self.make(step)
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)

    def close(self, summary: Numbers) -> None:
        if self.writer is not None:
            self.writer.add_hparams({}, dict(summary)) if summary else None
            self.writer.close()


@final
class Trackio(Tracker):
    """trackio, which keeps its curves on this machine."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import trackio

        self.run = trackio.init(
            project=PROJECT, name=f"{folder.name}-{_id(folder)}", config=dict(config), resume="allow"
        )

    def log(self, step: int, numbers: Numbers) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self, summary: Numbers) -> None:
        if summary:
            self.run.log(dict(summary))
        self.run.finish()


Make = Callable[[Path, Mapping[str, Any]], Tracker]
# By the names of their packages.
TRACKERS: dict[str, Make] = {"wandb": Wandb, "tensorboard": TensorBoard, "trackio": Trackio}
SHOWN = ("loss", "lr", "grad_norm", "tokens", "flops", "seconds", "tokens_per_second")
RESULT = ("loss", "loss_se", "bits_per_byte", "ppl", "params", "tokens", "steps", "flops")


class TrackerQueue:
    """One tracker behind a queue. `why`: what it failed of; empty while it lives."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name, self.make, self.why, self.dropped = name, make, "", 0
        self.queue: Queue[Callable[[Tracker], bool]] = Queue(WAITING)
        # A daemon: a library that hangs keeps no run from ending.
        self.thread = Thread(target=self._follow, name=f"tracker {name}", daemon=True)
        self.thread.start()

    def log(self, step: int, numbers: Numbers) -> None:
        self._put(lambda tracker: bool(tracker.log(step, numbers)))

    def close(self, summary: Numbers, patience: float) -> None:
        self._put(lambda tracker: not tracker.close(summary))
        self.thread.join(patience)
        if self.thread.is_alive():
            self._failed(f"it did not finish within {patience:g} s")

    def _put(self, task: Callable[[Tracker], bool]) -> None:
        try:
            if not self.why:
                self.queue.put_nowait(task)
        except Full:
            self.dropped += 1

    def _follow(self) -> None:
        try:
            tracker = self.make()
            while not self.queue.get()(tracker):
                pass
        except BaseException as error:  # a library may even call sys.exit
            self._failed(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _failed(self, why: str) -> None:
        if not self.why:
            self.why = why
            print(
                f"note: {self.name} fell out ({why}); the run goes on, and its journal has everything", file=sys.stderr
            )


class Trackers:
    """All that look on; none is the usual case."""

    def __init__(self, each: Sequence[TrackerQueue]) -> None:
        self.each = tuple(each)

    def log(self, record: Mapping[str, Any]) -> None:
        """A record of the journal that has a step: its numbers go to everyone. Never waits, never raises."""
        numbers = {key: float(record[key]) for key in SHOWN if isinstance(record.get(key), int | float)}
        if numbers:
            for one in self.each:
                one.log(int(record["step"]), numbers)

    def close(self, record: Mapping[str, Any] | None = None, patience: float = PATIENCE) -> None:
        """The run has ended, with its `record.json` if it is finished. Waits `patience` seconds at most for each."""
        summary = {f"final/{key}": float(record[key]) for key in RESULT if record and record.get(key) is not None}
        for one in self.each:
            one.close(summary, patience)


def check(names: Sequence[str]) -> None:
    """`UserError` for a tracker that is unknown or not installed."""
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        require(f"--track {name}", "track", name)


def open_trackers(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> Trackers:
    """Those of that name, told the run's configuration; errors as of `check`."""
    check(names)
    return Trackers([TrackerQueue(name, partial(TRACKERS[name], folder.resolve(), config)) for name in names])


def _id(folder: Path) -> str:
    """The same for every start of a run in this folder."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:12]
