"""Networks and training steps without data: random weights and tokens, the loss and optimiser of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from redraft.config import TrainConfig
from redraft.families.base import build
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.training.distributed.parallel import parallelize
from redraft.training.distributed.ranks import Ranks
from redraft.training.optim import adamw
from redraft.training.trainer import LossModule
from redraft.types import Batch


def random_network(shape: Shape, device: torch.device, compute: torch.dtype) -> Transformer:
    """On the device from the first, where a billion weights are drawn at once. No weight is zero, so no kernel skips any."""
    with device:
        network = Transformer(shape, compute)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            norm = "norm" in name
            parameter.normal_(1.0 if norm else 0.0, 0.02, generator=generator)
    return network


def reborn(network: Transformer) -> Transformer:
    """A network of the same parameters, nothing of which was compiled or checkpointed: the optimiser's are still its."""
    with torch.device("meta"):
        other = Transformer(network.shape, network.compute)
    other.load_state_dict(network.state_dict(keep_vars=True), assign=True)
    return other


class Steps:
    """Training steps of one family on random tokens [rows, length]: loss, gradients, clipping, AdamW."""

    def __init__(
        self,
        network: Transformer,
        optimizer: torch.optim.Optimizer,
        family: str,
        how: TrainConfig,
        length: int,
        options: dict[str, Any] | None = None,
    ):
        device, vocab = network.embedding.device, network.shape.vocab
        self.optimizer, self.how, self.network = optimizer, how, reborn(network)
        loss_module = LossModule(build(family, options or {}, vocab), self.network, None, 0)
        self.loss_module: nn.Module = parallelize(loss_module, self.network, None, how, Ranks())
        rows = how.batch // how.accumulate
        generator = torch.Generator(device).manual_seed(1)
        tokens = torch.randint(0, vocab, (rows, length), generator=generator, device=device)
        self.batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(rows, device=device))

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.batch.tokens.device)
        for _ in range(self.how.accumulate):
            if self.how.compile == "graphs":
                torch.compiler.cudagraph_mark_step_begin()
            loss = self.loss_module(self.batch, 0.0).sum() / (self.batch.tokens.numel() * self.how.accumulate)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.how.clip)
        self.optimizer.step()
        return total


def how(device: torch.device, rows: int, **settings: Any) -> TrainConfig:
    return TrainConfig(device=str(device), batch=rows, precision="bfloat16", **settings)


def optimizer_of(network: Transformer) -> torch.optim.Optimizer:
    """Of one network for all families in turn: its state is 8 bytes a weight."""
    return adamw(network, TrainConfig(lr=1e-5))
