"""XDLM: mask and uniform noise mixed in fixed shares.  Liu et al. 2026, arXiv:2602.01362, eqs. 5-15.

A token survives to time t with probability alpha(t), else it is one of the V text ids, drawn uniformly, with probability k and
[MASK] with probability 1 - k, whatever the time: one stationary kernel (eq. 7). k = 0 is the process of MDLM, k = 1 that of
Duo; GIDD's mixture moves with time. With each = (1 - alpha) k / V, the weight of the bound (mask_uniform.py; eq. 15) is

    r(z) / q(z | x) = -alpha' / (alpha (1 - alpha)) [ 1 at [MASK] and at a wrong id,  each / (alpha + each) at the true one ]

Predicts: p(x0 at l | x_t without position l), the leave-one-out posterior, as Duo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import check_absorbing
from redraft.families.mask_uniform import MaskUniform
from redraft.noise.counter_rng import Key
from redraft.noise.schedules import Linear, Schedule
from redraft.types import Batch, Network, TokenLoss


@dataclass(frozen=True)
class XDLM(MaskUniform):
    """`uniform` k in [0, 1]: the share of noise that is uniform (the paper's runs: 0.1). Trains on its bound.

    The paper's uniform noise falls on [MASK] too, one of its N = V + 1 states: its k is V / (V + 1) of it here, and 1 is Duo's
    process exactly.
    """

    name: ClassVar[str] = "xdlm"
    sampler: ClassVar[str] = "ancestral"
    exported: ClassVar[str] = "stationary"
    clocked: ClassVar[bool] = True
    # Under a cosine, alpha goes as (1 - t)^2, and is a difference of two numbers near 1.
    latest: ClassVar[float] = 1 - 3e-5
    vocab: int
    uniform: float = 0.1
    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if not 0 <= self.uniform <= 1:
            raise UserError(f"family.uniform must be in [0, 1], got {self.uniform}")
        if self.uniform == 0:
            check_absorbing(self.schedule)

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        return self.per_token_loss(self.token_nelbo, network, batch, key, self.training_times)

    def masked(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 - self.uniform)

    def noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        gone = 1 - self.schedule(t)[0]
        return gone * (1 - self.uniform), gone * self.uniform / self.vocab

    def bound_weight(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """-alpha' / (alpha (1 - alpha)) at [MASK] and at a wrong id, and less at the true one."""
        (alpha, dalpha), each = self.schedule(t), self.noise(t)[1]
        return -dalpha / (alpha * (1 - alpha)) * torch.where(z == x, each / (alpha + each), 1.0)

    def prior_nats(self) -> float:
        """KL of alpha x0 + (1 - alpha) pi from pi, at t = 1."""
        left = self.schedule(torch.ones((), dtype=torch.float64))[0].item()
        if left == 0:
            return 0.0
        own = self.uniform / self.vocab
        kept = left + (1 - left) * own
        return kept * math.log(kept / own) + (1 - left) * (1 - own) * math.log1p(-left)
