"""GIDD: mask and uniform noise mixed.  von Ruette et al. 2025, arXiv:2503.04482.

A token survives to time t with probability alpha(t), else it is [MASK] or one of the V text ids, drawn uniformly; the law
pi_t of what it becomes moves with time (`Hybrid` in noise/schedules.py), from uniform at t = 0 to [MASK] at t = 1. So a
visible token may be wrong, and is predicted too. Bound and reverse step: mask_uniform.py.
Predicts: p(x0 at l | x_t without position l), the leave-one-out posterior, as Duo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from redraft.errors import UserError, unknown
from redraft.families.mask_uniform import MaskUniform
from redraft.noise.counter_rng import Key
from redraft.noise.schedules import Hybrid
from redraft.noise.time_density import Power, TimeDensity
from redraft.types import Batch, Network, TokenLoss

WEIGHTS = ("dynamic", "nelbo")


@dataclass(frozen=True)
class GIDD(MaskUniform):
    """`uniform` in [0, 1): the share of uniform noise at t = 1/2; 0 is the process of MDLM. `weights` of the divergences in
    training: "nelbo", those of the bound, or "dynamic", the paper's, which keep their ratios and stay small.
    """

    name: ClassVar[str] = "gidd"
    sampler: ClassVar[str] = "ancestral"
    exported: ClassVar[str] = "hybrid"
    clocked: ClassVar[bool] = True
    # Near t = 0 a wrong id has probability ~sqrt(t) and loss ~log(1/t) / t: with uniform t the variance is infinite.
    bound_times: ClassVar[TimeDensity] = Power(3)
    vocab: int
    uniform: float = 0.1
    weights: str = "dynamic"

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise unknown("weights", self.weights, WEIGHTS)
        if not 0 <= self.uniform < 1:
            raise UserError(f"family.uniform must be in [0, 1), got {self.uniform}")
        object.__setattr__(self, "schedule", self.process)

    @property
    def process(self) -> Hybrid:
        return Hybrid(self.vocab, self.uniform)

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        bound = self.weights == "nelbo"
        times = self.training_times if bound else self.density
        return self.per_token_loss(self.token_loss, network, batch, key, times, weighted=bound)

    def token_loss(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        if self.weights == "nelbo":
            return self.token_nelbo(network, hidden, xt, x0, t)
        t = t.clamp(max=self.latest)
        return self.divergences(network, hidden, xt, x0, t, self.dynamic_weight(xt, x0, t))

    def prior_nats(self) -> float:
        return 0.0

    def masked(self, t: Tensor) -> Tensor:
        return self.process.masked(t)

    def noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.process.noise(t)

    def bound_weight(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """1 / (t (1 - t)) at [MASK], half of that at a wrong id, and less at the true one."""
        alpha, each = self.schedule(t)[0], self.noise(t)[1]
        text = torch.where(z == x, each / (alpha + each), 1.0) / 2
        return torch.where(z == self.mask_id, 1.0, text) / (t * (1 - t))

    def dynamic_weight(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """2 at [MASK], 1 at a wrong id, B sqrt((1 - alpha) / alpha), at most 2, at the true one: as in their code."""
        alpha = self.schedule(t)[0]
        own = (self.process.mass / self.vocab * ((1 - alpha) / alpha).sqrt()).clamp(max=2)
        return torch.where(z == self.mask_id, 2.0, torch.where(z == x, own, 1.0))
