"""CompleteP (Dey et al. 2025, arXiv:2505.01618): hyperparameters transferred from a small network to wider and deeper ones.

The paper multiplies what a block adds to the residual stream by 1 / m_L and the logits by 1 / m_N (m: ratios of depth and
width to those of the small network), and scales learning rates, decay and eps by layer. Under AdamW a factor c on a weight's
output is the same as c on its initial value and its learning rate and 1 / c on eps and decay, so here it is all in those: the
network and its checkpoints stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from redraft.config import CompletePConfig, TrainConfig
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer


@dataclass(frozen=True)
class Factors:
    """What multiplies a parameter's initial value, learning rate, eps and weight decay."""

    init: float = 1.0
    lr: float = 1.0
    eps: float = 1.0
    decay: float = 1.0


def factors(name: str, parameter: nn.Parameter, shape: Shape, base: CompletePConfig) -> Factors:
    """The paper's Table 1 with alpha = 1, its multipliers absorbed. Initial values are relative to `initialised`."""
    wide, deep = shape.width / base.width, shape.depth / base.depth
    owner = name.split(".")[-2] if "." in name else name
    if name == "embedding":
        return Factors(init=math.sqrt(wide))  # `initialised` draws it with 1 / sqrt(width); here it keeps its size
    if owner == "output" and parameter.ndim == 2:
        return Factors(init=1 / math.sqrt(wide), lr=1 / wide, eps=wide, decay=wide)
    if owner in ("qkv", "up", "gate") and parameter.ndim == 2:
        return Factors(lr=1 / wide, eps=1 / (wide * deep), decay=wide)
    if owner in ("out", "down"):
        # The llama block is drawn with 1 / depth already.
        init = 1 / deep if shape.block == "dit" or parameter.ndim == 1 else 1.0
        if parameter.ndim == 1:
            return Factors(init, lr=1 / deep, eps=deep, decay=deep)
        return Factors(init, lr=1 / (wide * deep), eps=1 / wide, decay=wide * deep)
    return Factors()


def rescale(network: Transformer, base: CompletePConfig) -> None:
    """Initial values as CompleteP has them, in place."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.mul_(factors(name, parameter, network.shape, base).init)


def groups(network: Transformer, config: TrainConfig) -> list[dict[str, Any]]:
    """One optimiser group for each set of factors; `scale` multiplies the scheduled learning rate."""
    assert config.completep is not None
    found: dict[Factors, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        found.setdefault(factors(name, parameter, network.shape, config.completep), []).append(parameter)
    return [
        {"params": own, "scale": f.lr, "eps": config.eps * f.eps, "weight_decay": config.weight_decay * f.decay}
        for f, own in found.items()
    ]
