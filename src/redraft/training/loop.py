"""The training loop: one generator of steps. Reading it aloud should explain it.

Everything random is a function of (seed, sample number, position), and which tokens a step holds a function of
(seed, step). So a run that was killed and continued ends in the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from redraft.errors import Diverged
from redraft.families.base import Taught
from redraft.network.init import initialised
from redraft.network.padding import reading
from redraft.network.transformer import Transformer
from redraft.noise.draws import Key
from redraft.training import checkpoint, lora
from redraft.training.budget import Budget
from redraft.training.data import as_batch
from redraft.training.journal import Journal, StepRecord
from redraft.training.optim import adamw, follow
from redraft.training.precision import DTYPES
from redraft.training.schedule import learning_rate
from redraft.training.setup import Setup
from redraft.training.transfer import rescale
from redraft.types import Batch, TokenLoss

LOG_EVERY = 10


@dataclass(frozen=True)
class Step:
    """`step` steps are done. `loss` is what was descended, nats per scored token; both tensors stay on the device."""

    step: int
    loss: Tensor
    grad_norm: Tensor
    lr: float


@dataclass
class Trainer:
    """The moving parts of a run."""

    setup: Setup
    network: Transformer
    optimizer: torch.optim.Optimizer
    average: list[Tensor]
    teacher: Transformer | None
    step: int = 0

    @staticmethod
    def start(
        setup: Setup, folder: Path, given: Mapping[str, Tensor] | None = None, fork: Path | None = None
    ) -> Trainer:
        """The state that an interrupted run left in `folder`, or that of the file `fork`; else `given` or fresh weights."""
        train = setup.config.train
        if train.threads:
            torch.set_num_threads(train.threads)
        network = initialised(setup.budget.shape, setup.config.seed, DTYPES[train.precision])
        if train.transfer is not None:
            rescale(network, train.transfer)
        if given is not None:
            network.load_state_dict(given)
        if train.lora is not None:
            lora.adapt(network, train.lora, setup.config.seed)
        network.to(train.device)
        teacher = deepcopy(network).requires_grad_(False) if setup.teachers else None
        if train.compile:
            network.compile_trunk()
        optimizer = adamw(network, train)
        average = [p.detach().clone() for p in network.parameters()] if train.ema else []
        trainer = Trainer(setup, network, optimizer, average, teacher)
        state = next((path for path in (folder / checkpoint.STATE, fork) if path and path.exists()), None)
        if state:
            trainer.step = checkpoint.load(state, network, optimizer, average, teacher)
        return trainer

    def run(self) -> Iterator[Step]:
        """Train from where we are to the end of the budget."""
        train, steps = self.setup.config.train, self.setup.budget.steps
        while self.step < steps:
            lr = learning_rate(train, self.step, steps)
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group.get("scale", 1.0)
            self.renew_teacher()
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.descend(self.step)
            grad_norm = nn.utils.clip_grad_norm_(self.network.parameters(), train.clip)
            self.optimizer.step()
            if train.ema:
                follow(self.average, list(self.network.parameters()), train.ema, self.step)
            self.step += 1
            yield Step(self.step, loss, grad_norm, lr)

    def descend(self, step: int) -> Tensor:
        """Gradients of the mean loss over the step's scored tokens, micro-batch by micro-batch; returns the mean.

        The tokens are counted over the whole step beforehand, so each weighs the same however the rows are parted.
        """
        train, rows = self.setup.config.train, self.setup.reader.step(step)
        scored, size = int(rows.scored.sum()), train.batch // train.accumulate
        total = torch.zeros((), device=train.device)
        for start in range(0, train.batch, size):
            part = as_batch(rows, slice(start, start + size), train.device)
            loss = self.loss(part, step / self.setup.budget.steps)
            share = loss.nats.sum() / scored
            share.backward()
            total += share.detach()
        return total

    def loss(self, batch: Batch, progress: float) -> TokenLoss:
        key = Key.of(self.setup.config.seed).fold("corruption")
        network = reading(self.network, batch)
        if self.teacher is not None:
            network = Taught(network, reading(self.teacher, batch))
        return self.setup.family.loss(network, batch, key=key, progress=progress)

    def renew_teacher(self) -> None:
        """At the first step of each round the teacher becomes what the student is."""
        rounds, steps = self.setup.teachers, self.setup.budget.steps
        if self.teacher is not None and self.step * rounds // steps != (self.step - 1) * rounds // steps:
            with torch.no_grad():
                for theirs, ours in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
                    theirs.copy_(ours)

    def save(self, folder: Path, name: str = checkpoint.STATE) -> None:
        checkpoint.save(folder / name, self.step, self.network, self.optimizer, self.average, self.teacher)

    def final_weights(self) -> Transformer:
        """The network to keep: the moving average where there is one, adapters merged. Training is over then."""
        if self.average:
            with torch.no_grad():
                for parameter, mean in zip(self.network.parameters(), self.average, strict=True):
                    parameter.copy_(mean)
        if self.setup.config.train.lora is not None:
            lora.merge(self.network)
            self.network.requires_grad_(True)
        return self.network


def train(trainer: Trainer, folder: Path, forks: Mapping[int, Sequence[Path]] | None = None) -> Iterator[StepRecord]:
    """Run to the end with a journal and checkpoints in `folder`; yields what it logs.

    `forks`: files that take the state after so many steps, for other runs to go on from. Closed early, it saves its state.
    `UserError` where the loss is no number any more.
    """
    config, budget = trainer.setup.config.train, trainer.setup.budget
    journal, began = Journal(folder / "journal.jsonl", trainer.step), time.perf_counter()
    try:
        for at in trainer.run():
            record = None
            if at.step % LOG_EVERY == 0 or at.step == budget.steps:
                record = _logged(at, budget, time.perf_counter() - began)
                journal.write(record)
            for fork in (forks or {}).get(at.step, ()):
                trainer.save(fork.parent, fork.name)
            if at.step % config.save_every == 0 and at.step < budget.steps:
                trainer.save(folder)
            if record:
                yield record
    except GeneratorExit:
        trainer.save(folder)
        raise
    finally:
        journal.close()


def _logged(at: Step, budget: Budget, seconds: float) -> StepRecord:
    """The one place where the loop waits for the device."""
    loss, grad_norm = torch.stack([at.loss, at.grad_norm]).tolist()
    if not math.isfinite(loss + grad_norm):
        raise Diverged(
            f"diverged: at step {at.step} of {budget.steps} the loss is {loss:g} and the norm of its gradient {grad_norm:g}; "
            f"lower train.lr (now {at.lr:g}) or train.clip, or lengthen train.warmup"
        )
    flops = budget.flops[budget.convention] / budget.steps * at.step
    return StepRecord(at.step, loss, at.lr, grad_norm, budget.tokens * at.step // budget.steps, flops, seconds)
