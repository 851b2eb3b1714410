"""AdamW, learning-rate schedules, and the moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from redraft.config import TrainConfig


def adamw(network: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all parameters in one group, decay on each, as both papers' code does."""
    return torch.optim.AdamW(
        network.parameters(),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Linear warmup, then cosine to min_lr x lr, or flat and a linear decay over the last share (wsd)."""
    warmup = round(config.warmup * steps) if config.warmup < 1 else round(config.warmup)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    floor = config.lr * config.min_lr
    if config.schedule == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    left = (steps - step) / max(1.0, config.decay * steps)
    return floor + (config.lr - floor) * min(1.0, left)


@torch.no_grad()
def follow(average: list[torch.Tensor], weights: list[torch.Tensor], decay: float, step: int) -> None:
    """Move the average towards the weights; early on faster: decay is at most (1 + n) / (10 + n)."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(average, weights, 1 - decay)
