"""The training loop: a generator of steps, with logging and checkpoints beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from redraft.training.distributed.ranks import Preempted
from redraft.training.health import LostData
from redraft.training.journal import StepRecord
from redraft.training.monitor import Monitor
from redraft.training.trainer import Trainer


def train(trainer: Trainer, folder: Path, forks: Mapping[int, Sequence[Path]] | None = None) -> Iterator[StepRecord]:
    """Run to the end with a journal and checkpoints in `folder`; yields what it logs.

    `forks`: files that take the state after so many steps, for other runs to go on from. Closed early, or where data are lost,
    it saves its state. `UserError` where the loss is no number any more, and by the other rules of health.py.
    """
    with trainer.ranks.handling_signals():
        yield from _watched(trainer, Monitor(trainer, folder), forks or {})


def _watched(trainer: Trainer, monitor: Monitor, forks: Mapping[int, Sequence[Path]]) -> Iterator[StepRecord]:
    try:
        for at in trainer.run():
            record = monitor.after(at)
            if at.step == trainer.step:  # not rolled back
                for fork in forks.get(at.step, ()):
                    trainer.save(fork.parent, fork.name)
                monitor.save_if_due()
            if record:
                yield record
        monitor.wait_for_save()
        if trainer.ranks.sum([bool(trainer.ranks.asked)])[0]:
            raise Preempted
    except (GeneratorExit, Preempted, LostData) as left:
        monitor.save()
        monitor.wait_for_save()
        if isinstance(left, Preempted):
            monitor.log_event("left", f"asked to leave after step {trainer.step}, which is saved")
        raise
    finally:
        monitor.close()
