"""AdamW, and the exponential moving average (EMA) of the weights."""

from __future__ import annotations

import torch
from torch import nn

from redraft.config import TrainConfig
from redraft.network.transformer import Transformer
from redraft.training.completep import groups


def adamw(network: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters in one group, weight decay on all; with `completep`, CompleteP's groups."""
    carried = groups(network, config) if isinstance(network, Transformer) and config.completep else None
    return torch.optim.AdamW(
        carried or (parameter for parameter in network.parameters() if parameter.requires_grad),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


@torch.no_grad()
def follow(average: list[torch.Tensor], weights: list[torch.Tensor], decay: float, step: int) -> None:
    """One EMA update. The decay is at most (1 + step) / (10 + step), so that early updates are larger."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(average, weights, 1 - decay)
