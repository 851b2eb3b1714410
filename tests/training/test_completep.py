"""CompleteP absorbed into initial values and optimiser groups is CompleteP with its multipliers written out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from redraft.config import CompletePConfig, TrainConfig
from redraft.families.base import build
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.noise.counter_rng import Key
from redraft.training.completep import factors, groups, rescale
from redraft.training.optim import adamw
from redraft.types import Batch

BASE = CompletePConfig(width=16, depth=2)
WIDE, DEEP = 3.0, 2.0
LR, DECAY = 1e-2, 0.3
TINY = 1e-30  # eps: too small to matter, so that the two differ by rounding alone


def shape(block: str, wide: float = WIDE, deep: float = DEEP) -> Shape:
    width, depth = round(BASE.width * wide), round(BASE.depth * deep)
    return Shape(block, depth, 2, width, 4 * width, 11, cond=8 if block == "dit" else 0)


def written_out(block: str) -> tuple[Transformer, list[dict[str, Any]]]:
    """The paper's form: multipliers on what blocks add and on the logits, and Table 1's rates with alpha = 1."""
    network = initialised(shape(block), 0).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name == "embedding":
                parameter.mul_(WIDE**0.5)
            elif name == "output.weight":
                parameter.mul_(WIDE**0.5)  # drawn with 1 / sqrt(width); the paper's keeps its size under 1 / m_N
            elif name.split(".")[-2] in ("out", "down") and block == "llama":
                parameter.mul_(DEEP)  # drawn with 1 / depth, which the multiplier does here
    for layer in network.blocks:
        for module in (layer.out, layer.mlp.down):
            module.register_forward_hook(lambda module, inputs, output: output / DEEP)
    parametrize.register_parametrization(network.output, "weight", Narrowed())
    hidden = [p for n, p in network.named_parameters() if p.ndim == 2 and _owner(n) in HIDDEN]
    others = [p for p in network.parameters() if all(p is not h for h in hidden)]
    rates = [
        {"params": hidden, "lr": LR / WIDE, "weight_decay": DECAY * WIDE},
        {"params": others, "lr": LR, "weight_decay": DECAY},
    ]
    return network, rates


class Narrowed(nn.Module):
    """The multiplier on the logits."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / WIDE


HIDDEN = ("qkv", "out", "up", "gate", "down")


def _owner(name: str) -> str:
    return name.split(".")[-2] if "." in name else name


def losses(network: Transformer, optimizer: torch.optim.Optimizer) -> Iterator[float]:
    family = build("ar", {}, 11)
    tokens = torch.randint(0, 11, (3, 7), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(3))
    for _ in range(6):
        optimizer.zero_grad()
        loss = family.loss(network, batch, key=Key.of(0), progress=0.0).nats.sum() / tokens.numel()
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


@pytest.mark.parametrize("block", ["dit", "llama"])
def test_absorbed_multipliers_train_as_written_out_ones(block: str) -> None:
    config = TrainConfig(lr=LR, weight_decay=DECAY, eps=TINY, completep=BASE)
    absorbed = initialised(shape(block), 0).double()
    absorbed.compute = torch.float64
    rescale(absorbed, BASE)
    own = [{**g, "lr": LR * g["scale"]} for g in groups(absorbed, config)]
    ours = list(losses(absorbed, torch.optim.AdamW(own, betas=(0.9, 0.95), eps=TINY)))
    network, rates = written_out(block)
    network.compute = torch.float64
    optimizer = torch.optim.AdamW(rates, betas=(0.9, 0.95), eps=TINY)
    assert ours == pytest.approx(list(losses(network, optimizer)), rel=1e-9)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize("block", ["dit", "llama"])
def test_on_the_network_it_was_chosen_on_nothing_changes(block: str) -> None:
    network = initialised(shape(block, 1.0, 1.0), 0)
    for name, parameter in network.named_parameters():
        f = factors(name, parameter, network.shape, BASE)
        assert (f.init, f.lr, f.eps, f.decay) == (1, 1, 1, 1), name


def test_the_trainer_s_optimiser_has_the_groups() -> None:
    network = initialised(shape("llama"), 0)
    found = adamw(network, TrainConfig(completep=BASE)).param_groups
    assert {round(g["scale"], 6) for g in found} == {1.0, round(1 / WIDE, 6), round(1 / (WIDE * DEEP), 6)}
    assert sum(len(g["params"]) for g in found) == len(list(network.parameters()))
    assert len(adamw(network, TrainConfig()).param_groups) == 1
