"""The trainer: network, optimiser, teacher and data of a run, and one training step.

Everything random is a function of (seed, sample number, position), and which tokens a step holds a function of
(seed, step). So a run that was killed and continued ends in the same bits as one that was not (on a GPU with
train.deterministic: its kernels add up in any order otherwise), and a step is the same sum on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from redraft.config import AdaptConfig
from redraft.errors import UserError
from redraft.families.base import Family, TeacherStudent
from redraft.network.device import DTYPES, deterministic
from redraft.network.dropout import Dropped
from redraft.network.head import summed
from redraft.network.init import initialised
from redraft.network.padding import reading
from redraft.network.transformer import Transformer
from redraft.noise.counter_rng import Key, uniform
from redraft.planning.budget import micro_batches
from redraft.planning.lr_schedule import learning_rate
from redraft.text.shards.packing import Rows
from redraft.training import checkpoint, lora
from redraft.training.adapt import opening
from redraft.training.checkpoint import Cursor
from redraft.training.completep import rescale
from redraft.training.distributed import sharded_checkpoint
from redraft.training.distributed.parallel import full_tensor, micro_batch, parallelize, to_local
from redraft.training.distributed.ranks import Preempted, Ranks, here
from redraft.training.health import LostData
from redraft.training.loader import Loader, as_batch, parts
from redraft.training.optim import adamw, follow
from redraft.training.setup import Setup
from redraft.types import Batch, TokenLoss


@dataclass(frozen=True)
class Step:
    """`step` steps are done. `loss` is what was descended, nats per scored token: this rank's share of the sum; `grad_norm` is
    that of the whole. Both stay on the device. `updated`: False where the gradient was no number and the step was skipped."""

    step: int
    loss: Tensor
    grad_norm: Tensor
    lr: float
    updated: bool = True


class LossModule(nn.Module):
    """Computes the loss: nats [B, L] of a batch, whose sum is differentiated. It wraps the family's loss, however many forward
    passes that makes, in one module, so that DDP or FSDP sees a single forward call. `dropout`: the share that is dropped of
    what its blocks add, a teacher's excepted."""

    def __init__(
        self,
        family: Family,
        network: Transformer,
        teacher: Transformer | None,
        seed: int,
        dropout: float = 0.0,
        adapt: AdaptConfig | None = None,
    ):
        super().__init__()
        self.adapt = adapt
        self.family, self.key = family, Key.of(seed).fold_in("corruption")
        self.network, self.teacher, self.dropout = network, teacher, dropout

    def forward(self, batch: Batch, progress: float) -> Tensor:
        network = reading(self.dropping(batch.index) if self.dropout else self.network, batch)
        network = opening(network, self.adapt, progress, self.key)
        if self.teacher is not None:
            network = TeacherStudent(network, reading(self.teacher, batch))
        with summed():
            return self.family.loss(network, batch, key=self.key, progress=progress).nats

    def dropping(self, index: Tensor) -> Dropped:
        """The network that drops, of samples `index` [B]."""
        uniforms = lambda words, *counters: uniform(self.key.fold_in(*words), *counters)
        return Dropped(self.network, self.network.shape, self.dropout, index, uniforms)


@dataclass
class Trainer:
    """The moving parts of a run, as one rank holds them. `damaged`: checkpoints that were passed over when it resumed."""

    setup: Setup
    network: Transformer
    optimizer: torch.optim.Optimizer
    average: list[Tensor]
    teacher: Transformer | None
    loss_module: nn.Module
    ranks: Ranks
    loader: Loader
    step: int = 0
    shift: int = 0
    damaged: list[str] = field(default_factory=list)

    @staticmethod
    def start(
        setup: Setup, folder: Path, given: Mapping[str, Tensor] | None = None, fork: Path | None = None
    ) -> Trainer:
        """The state that an interrupted run left in `folder`, or that of the file `fork`; else `given` (the first rank's) or
        fresh weights."""
        train, ranks = setup.config.train, here()
        if train.threads:
            torch.set_num_threads(train.threads)
        network = _network(setup, given, ranks)
        teacher = deepcopy(network).requires_grad_(False) if setup.teachers else None
        loss_module = parallelize(
            LossModule(setup.family, network, teacher, setup.config.seed, train.dropout, train.adapt),
            network,
            teacher,
            train,
            ranks,
        )
        optimizer = adamw(network, train)
        if train.compile == "graphs":
            # A replay writes over what the one before it returned, so gradients are added up outside the graphs.
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        average = [p.detach().clone() for p in network.parameters()] if train.ema else []
        turns = micro_batches(train.batch, train.accumulate, ranks.size)
        loader = Loader(setup.reader, parts(train.batch, turns, ranks.rank, ranks.size))
        trainer = Trainer(setup, network, optimizer, average, teacher, loss_module, ranks, loader)
        trainer.restore(folder, fork)
        return trainer

    def run(self) -> Iterator[Step]:
        """Train from where we are to the end of the budget."""
        while self.step < self.setup.budget.steps:
            with deterministic(self.setup.config.train.deterministic):
                at = self.advance()
            yield at

    def advance(self) -> Step:
        """One step."""
        train = self.setup.config.train
        lr = learning_rate(train, self.step, self.setup.budget.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        self.renew_teacher()
        self.optimizer.zero_grad(set_to_none=train.compile != "graphs")
        loss = self.descend(self.step)
        grad_norm = self.clip()
        # Whether it is a number is asked of the device at every step only where the answer changes something.
        updated = train.on_nan == "stop" or bool(torch.isfinite(grad_norm))
        if updated:
            self.optimizer.step()
            if train.ema:
                weights = [to_local(p) for p in self.network.parameters()]
                follow([to_local(mean) for mean in self.average], weights, train.ema, self.step)
        self.step += 1
        return Step(self.step, loss, grad_norm, lr, updated)

    def descend(self, step: int) -> Tensor:
        """Gradients of the mean loss over the step's scored tokens, micro-batch by micro-batch; returns this rank's share.

        The tokens are counted over the whole step and all ranks beforehand, so each weighs the same however rows are parted.
        """
        config, train = self.setup.config, self.setup.config.train
        device = train.device
        rows, scored = self.read(step)
        total = torch.zeros((), device=device)
        starts, shares = self.loader.starts(), self.loader.shares
        for number, (start, part) in enumerate(zip(starts, shares, strict=True)):
            if train.compile == "graphs":
                torch.compiler.cudagraph_mark_step_begin()
            here = slice(start, start + len(part.places))
            batch = as_batch(rows, here, device, paid=part.paid, most=config.data.length)
            with micro_batch(self.loss_module, number == len(shares) - 1, not train.parallel.reshard):
                share = self.loss(batch, step / self.setup.budget.steps).nats.sum() / scored
                # DDP and FSDP average gradients over ranks; the mean over tokens needs the sum of the shares.
                (share * self.ranks.size if self.ranks.size > 1 else share).backward()
            total = total + share.detach()
        return total

    def read(self, step: int) -> tuple[Rows, float]:
        """This rank's rows of a step, and how many tokens all ranks are charged for in it."""
        rows, scored, trouble = None, 0, ""
        try:
            rows = self.loader.take(step + self.shift)
            scored = self.loader.scored(rows)
        except (OSError, ValueError) as error:
            trouble = str(error) if isinstance(error, UserError) else f"{error}; bring it back and run the same command"
        total, lost, asked = self.ranks.sum([scored, bool(trouble), bool(self.ranks.asked)])
        if lost:
            rank, why = next(pair for pair in enumerate(self.ranks.gather(trouble)) if pair[1])
            where = f"rank {rank}: " if self.ranks.size > 1 else ""
            raise LostData(f"{where}the data of step {step + 1} cannot be read: {why}")
        if asked:
            raise Preempted
        assert rows is not None
        return rows, int(total)

    def loss(self, batch: Batch, progress: float) -> TokenLoss:
        return TokenLoss(self.loss_module(batch, progress), batch.scored)

    def clip(self) -> Tensor:
        """The norm of the whole gradient, which is brought down to `clip`."""
        weights = [p for p in self.network.parameters() if p.grad is not None]
        norm = full_tensor(nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None]))
        nn.utils.clip_grads_with_norm_(weights, self.setup.config.train.clip, norm)
        return norm

    def renew_teacher(self) -> None:
        """At the first step of each distillation round the student's weights are copied to the teacher."""
        rounds, steps = self.setup.teachers, self.setup.budget.steps
        if self.teacher is not None and self.step * rounds // steps != (self.step - 1) * rounds // steps:
            with torch.no_grad():
                for theirs, ours in zip(self.teacher.parameters(), self.network.parameters(), strict=True):
                    to_local(theirs).copy_(to_local(ours))

    def state(self) -> dict[str, Tensor]:
        """All that steps change, by name."""
        return checkpoint.state(self.network, self.optimizer, self.average, self.teacher)

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.step, self.shift)

    def save(self, folder: Path, name: str = checkpoint.STATE) -> None:
        """The whole state in one file."""
        checkpoint.save(folder / name, self.cursor, self.state())

    def restore(self, folder: Path, fork: Path | None = None) -> None:
        """Go to the newest whole checkpoint, if there is one."""
        cursor, self.damaged = sharded_checkpoint.resume(folder, self.state(), fork)
        if cursor is not None:
            self.step, self.shift = cursor.step, cursor.shift
            checkpoint.count(self.network, self.optimizer, self.step)

    def final_weights(self) -> Transformer:
        """The network to keep, whole and on the first rank: the moving average where there is one, adapters merged.
        In float32. All ranks ask together; training is over then."""
        kept, network = self.average or list(self.network.parameters()), self.network
        if self.ranks.several and self.ranks.first:
            network = _network(self.setup, None, Ranks()).to(self.setup.config.train.device)
        with torch.no_grad():
            for parameter, mean in zip(network.parameters(), kept, strict=True):
                weight = full_tensor(mean)
                if self.ranks.first:
                    parameter.copy_(weight)
        if self.setup.config.train.lora is not None and self.ranks.first:
            lora.merge(network)
            network.requires_grad_(True)
        if network.compute == torch.float64:
            network.float().compute = torch.float32
        return network


def _network(setup: Setup, given: Mapping[str, Tensor] | None, ranks: Ranks) -> Transformer:
    """On the CPU, with its first weights: the same on every rank."""
    train = setup.config.train
    network = initialised(setup.budget.shape, setup.config.seed, DTYPES[train.precision])
    if train.completep is not None:
        rescale(network, train.completep)
    if given is not None:
        network.load_state_dict(given)
    if ranks.tell(given is not None):
        for parameter in network.parameters():
            ranks.copy(parameter.data)
    if train.lora is not None:
        lora.adapt(network, setup.config)
    return network.double() if network.compute == torch.float64 else network
