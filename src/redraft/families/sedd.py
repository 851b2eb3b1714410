"""SEDD: score entropy discrete diffusion with an absorbing state.  Lou et al. 2023, arXiv:2310.16834, eqs. 5, 10 and 24.

The process of MDLM; the network sees the clock too, and learns the ratio in which a hidden token's ids stand to [MASK],
a score, which need not be normalised. Scaled by the noise level, sigma = -log alpha:

    log s_v = logit_v - log(exp(sigma) - 1) - log V

Predicts: V p(x0 at l | visible tokens), the score with the noise level and the number of ids taken out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from redraft.families.base import Absorbing, check_absorbing
from redraft.network.device import flat_places
from redraft.noise.counter_rng import Key
from redraft.noise.schedules import Linear, Schedule
from redraft.types import Batch, Network, TokenLoss


@dataclass(frozen=True)
class SEDD(Absorbing):
    """Trains on its bound, the denoising score entropy. Samplers are given the score, normalised."""

    name: ClassVar[str] = "sedd"
    sampler: ClassVar[str] = "analytic"
    exported: ClassVar[str] = "absorbing"
    clocked: ClassVar[bool] = True
    vocab: int
    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        check_absorbing(self.schedule)

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        return self.per_token_loss(self.token_nelbo, network, batch, key, self.training_times)

    def token_nelbo(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        places = flat_places(xt == self.mask_id)
        weight = self.weight(t).to(hidden.dtype).expand(x0.shape)
        rows, *others = (part.flatten(0, 1).index_select(0, places) for part in (hidden, x0, weight))
        nats = network.by_rule(weighed_entropy, rows, *others)
        return hidden.new_zeros(x0.numel()).index_copy(0, places, nats.to(hidden.dtype)).view(x0.shape)


def weighed_entropy(logits: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`weight` [R] times the `score_entropy`."""
    return weight * score_entropy(logits, x)


def score_entropy(logits: Tensor, x: Tensor) -> Tensor:
    """sum_v s_v - r log s_x + r (log r - 1) in units of r = 1 / (exp(sigma) - 1), the true score of x: [R, V], [R] -> [R].

    With Z = 1/V sum_v exp(logit_v) it is -log softmax(logits)_x + Z - 1 - log Z: a cross-entropy, and a penalty on the scores
    for a sum other than r. The bound's weight on it, sigma' r, is MDLM's -alpha' / (1 - alpha).
    """
    total = logits.logsumexp(-1)
    excess = total - math.log(logits.shape[-1])
    return total - logits.gather(-1, x[:, None])[:, 0] + torch.expm1(excess) - excess
