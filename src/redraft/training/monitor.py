"""Logging, checkpointing and recovery beside the training loop (rules in health.py)."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch

from redraft.errors import Diverged, UserError
from redraft.network.device import accelerated
from redraft.training.checkpoint import STATE, Writer
from redraft.training.distributed.sharded_checkpoint import Saver
from redraft.training.health import FAILED_SAVES, ROLLBACKS, SKIPS, SPIKE_STEPS, SPIKE_WINDOW, Slowness, Spikes
from redraft.training.journal import Event, Heartbeat, Journal, StepRecord, read_journal
from redraft.training.trainer import Step, Trainer

LOG_EVERY = 10
BEAT = 30.0  # seconds between heartbeats


class Monitor:
    """One for each rank; the first keeps the journal. All decide alike, since they see the same numbers."""

    def __init__(self, trainer: Trainer, folder: Path):
        self.trainer, self.folder, self.ranks = trainer, folder, trainer.ranks
        self.config, self.budget = trainer.setup.config.train, trainer.setup.budget
        self.journal = Journal(folder / "journal.jsonl", trainer.step) if self.ranks.first else None
        self.saver = self.background()
        losses = [r.loss for r in read_journal(folder / "journal.jsonl")[-SPIKE_WINDOW:]] if self.ranks.first else []
        self.spikes, self.reading, self.products = Spikes(losses), Slowness(0.01), Slowness()
        self.began, self.started, self.beat = time.perf_counter(), trainer.step, -math.inf
        self.failed = self.skipped = 0
        self.high, self.saved = False, trainer.step > 0
        self.returns: dict[int, int] = {}
        for text in trainer.damaged:
            self.log_event(
                "damage", f"{text.partition('; delete')[0]}: went on from the one before, of step {trainer.step}"
            )
        if "rollback" in (self.config.on_nan, self.config.on_spike) and trainer.step == 0:
            self.save()

    def background(self) -> Saver | Writer | None:
        """What writes checkpoints while training goes on. A CPU has nobody to write beside it."""
        if self.ranks.several:
            return Saver(self.folder, self.config.keep, self.ranks)
        return Writer(self.folder / STATE) if accelerated(self.config.device) else None

    def after(self, at: Step) -> StepRecord | None:
        """What is logged of a step, if anything is."""
        if not at.updated:
            self.not_a_number(at)
            return None
        self.skipped = 0
        logged = at.step % LOG_EVERY == 0 or at.step == self.budget.steps
        if not (logged or self.saves(at.step)):
            return None
        loss, grad_norm = self.measured(at)
        if not logged:
            return None
        record = self.record(at, loss, grad_norm)
        if self.journal:
            self.journal.write(record)
        if self.saver and self.saver.running and self.ranks.sum([self.saver.ready])[0] == self.ranks.size:
            self.wait_for_save()
        self.heart(at.step)
        self.spike(at, loss)
        return record

    def measured(self, at: Step) -> tuple[float, float]:
        """Loss and gradient norm of the whole step. The loop waits for the device here, and where the head picks its rows."""
        loss, grad_norm = torch.stack([at.loss, at.grad_norm]).tolist()
        [loss] = self.ranks.sum([loss])
        if not math.isfinite(loss + grad_norm):
            raise self.diverged(at, f"the loss is {loss:g} and the norm of its gradient {grad_norm:g}")
        return loss, grad_norm

    def record(self, at: Step, loss: float, grad_norm: float) -> StepRecord:
        budget, seconds = self.budget, time.perf_counter() - self.began
        flops = budget.flops[budget.convention] / budget.steps * at.step
        return StepRecord(at.step, loss, at.lr, grad_norm, budget.tokens * at.step // budget.steps, flops, seconds)

    def diverged(self, at: Step, why: str) -> Diverged:
        return Diverged(
            f"diverged: at step {at.step} of {self.budget.steps} {why}; "
            f"lower train.lr (now {at.lr:g}) or train.clip, or lengthen train.warmup"
        )

    def not_a_number(self, at: Step) -> None:
        if self.config.on_nan == "rollback":
            self.roll_back(at, "nan", "the gradient is no number")
            return
        self.skipped += 1
        if self.skipped >= SKIPS:
            raise self.diverged(at, f"the gradient was no number {SKIPS} times in a row")
        self.log_event("nan", f"the gradient of step {at.step} is no number: its update was left out")

    def spike(self, at: Step, loss: float) -> None:
        told = self.spikes.looks(loss), self.spikes.high > 0
        found, self.high = self.ranks.tell(told)
        if not found:
            return
        why = f"the loss has been high ({loss:.4g}) for {SPIKE_STEPS} logged steps"
        if self.config.on_spike == "rollback":
            self.roll_back(at, "spike", why)
        elif self.config.on_spike == "stop":
            raise self.diverged(at, why)
        else:
            self.log_event("spike", why)

    def roll_back(self, at: Step, kind: str, why: str) -> None:
        """To the last whole checkpoint, past the data that were read since."""
        trainer, following = self.trainer, self.trainer.step + self.trainer.shift
        self.wait_for_save()
        trainer.restore(self.folder)
        if trainer.step == at.step:  # there was none
            raise self.diverged(at, f"{why}, and there is no checkpoint to go back to")
        self.returns[trainer.step] = self.returns.get(trainer.step, 0) + 1
        if self.returns[trainer.step] > ROLLBACKS:
            raise self.diverged(at, f"{why}, after {ROLLBACKS} returns to step {trainer.step}")
        trainer.shift = following - trainer.step
        if self.journal:
            self.journal.close()
            self.journal = Journal(self.folder / "journal.jsonl", trainer.step)
            self.spikes = Spikes(r.loss for r in read_journal(self.journal.path)[-SPIKE_WINDOW:])
        self.high = False
        self.log_event(kind, f"{why} at step {at.step}: back to step {trainer.step}, and past the data in between")

    def heart(self, step: int) -> None:
        """Whether a rank is slow; and now and then a sign of life."""
        reading, self.trainer.loader.seconds = self.trainer.loader.seconds, 0.0
        if not self.ranks.several and time.perf_counter() - self.beat < BEAT:
            return
        own = reading, product_seconds(self.config.device) if self.ranks.several else 0.0
        work = self.ranks.gather(own)
        for slowness, what, seconds in zip(
            (self.reading, self.products),
            ("reading its rows", "a matrix product"),
            zip(*work, strict=True),
            strict=True,
        ):
            late = slowness.looks(seconds)
            if late is not None:
                self.log_event(
                    "slow rank", f"rank {late} took {seconds[late]:.3g} s for {what}, the fastest {min(seconds):.3g} s"
                )
        if time.perf_counter() - self.beat < BEAT or not self.journal:
            return
        self.beat, gone = time.perf_counter(), time.perf_counter() - self.began
        pace, busy = gone / max(1, step - self.started), [sum(pair) for pair in work]
        left, rate = pace * (self.budget.steps - step), self.budget.tokens_per_step / pace
        range_ = (min(busy), max(busy))
        self.journal.write(Heartbeat(step, self.budget.steps, left, rate, range_, busy.index(max(busy))))

    def saves(self, step: int) -> bool:
        """Also after the last of a long run: what scores it may fail."""
        if step == self.budget.steps:
            return step > self.config.save_every
        return step % self.config.save_every == 0

    def save_if_due(self) -> None:
        held = self.high and self.config.on_spike == "rollback"  # a checkpoint amid a spike would be no way back
        if self.saves(self.trainer.step) and not held:
            self.save()

    def save(self) -> None:
        """Begin a checkpoint (several ranks, or a GPU), or write one."""
        self.wait_for_save()
        try:
            if self.saver:
                self.saver.begin(self.trainer.cursor, self.trainer.state())
            else:
                self.trainer.save(self.folder)
                self.failed, self.saved = 0, True
        except UserError as error:
            self.save_failed(str(error))

    def wait_for_save(self) -> None:
        """Wait for a checkpoint that is being written."""
        if not (self.saver and self.saver.running):
            return
        why = self.saver.collect()
        if why is None:
            self.failed, self.saved = 0, True
        else:
            self.save_failed(why)

    def save_failed(self, why: str) -> None:
        self.failed += 1
        if not self.saved:
            raise UserError(why)
        if self.failed >= FAILED_SAVES:
            raise UserError(f"{FAILED_SAVES} checkpoints in a row could not be written: {why}")
        self.log_event(
            "save failed", f"a checkpoint could not be written ({why}): the one before is kept, training goes on"
        )

    def log_event(self, kind: str, text: str) -> None:
        if self.journal:
            self.journal.write(Event(kind, self.trainer.step, text))
            print(f"note: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.journal:
            self.journal.close()
        if self.saver:
            self.saver.close()


def product_seconds(device: str) -> float:
    """Best of three products of square matrices, no rank waiting for another: 0.03 GFLOPs on a CPU, 17 elsewhere."""
    size = 256 if torch.device(device).type == "cpu" else 2048
    a = torch.ones(size, size, device=device)
    best = math.inf
    for _ in range(3):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return best
