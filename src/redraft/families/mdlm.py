"""MDLM: masked (absorbing) diffusion.  Sahoo et al. 2024, arXiv:2406.07524, eqs. 7-11; Shi et al. 2024, arXiv:2406.04329.

A token survives to time t with probability alpha(t), else it becomes [MASK]. The network sees everything, both ways, and
no clock; it predicts the hidden tokens. Visible tokens are carried over and [MASK] is never predicted (SUBS, `carry_over`
in base.py).
Predicts: p(x0 at l | visible tokens).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.families.base import (
    Absorbing,
    AnyOrder,
    check_absorbing,
    check_grid,
    check_shift,
    full_view,
    masked_cross_entropy,
)
from redraft.noise.counter_rng import Key
from redraft.noise.schedules import Linear, Schedule
from redraft.types import Batch, Network, Noise, TokenLoss, View

OBJECTIVES = ("low_variance", "nelbo")


@dataclass(frozen=True)
class MDLM(Absorbing, AnyOrder):
    """Trains on the plain cross-entropy of hidden tokens ("low_variance", arXiv:2602.15014) or on the bound ("nelbo"):
    of continuous time, or of `grid` = T steps, as in eq. 8. `shift`: the network predicts a token from the place before it,
    as one that was autoregressive (DiffuLLaMA, arXiv:2410.17891; Dream, arXiv:2508.15487); the first from its own.
    """

    name: ClassVar[str] = "mdlm"
    sampler: ClassVar[str] = "ancestral"
    exported: ClassVar[str] = "absorbing"
    vocab: int
    objective: str = "low_variance"
    schedule: Schedule = field(default_factory=Linear)
    grid: int = 0
    shift: bool = False

    def __post_init__(self) -> None:
        check_objective(self.objective)
        check_shift(self.shift)
        check_grid(self.grid)
        check_absorbing(self.schedule)

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        weighted = self.objective == "nelbo"
        return self.per_token_loss(self.token_loss, network, batch, key, self.density, weighted)

    def view(self, tokens: Tensor, t: Tensor) -> View:
        return self.seen(tokens)

    def seen(self, tokens: Tensor) -> View:
        """The view of `tokens` [B, L] at any time."""
        return full_view(tokens, shifted=self.shift)

    def token_nelbo(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha) x cross-entropy of the hidden tokens; 1/t for the linear schedule."""
        return masked_cross_entropy(network, hidden, xt == self.mask_id, x0, self.weight(t))

    def token_loss(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        if self.objective == "nelbo":
            return self.token_nelbo(network, hidden, xt, x0, t)
        return masked_cross_entropy(network, hidden, xt == self.mask_id, x0)

    def hidden_nats(self, network: Network, x0: Tensor, hide: Tensor) -> Tensor:
        """Cross-entropy [B, L] of the tokens that `hide` [B, L] covers, given the others."""
        hidden = network.trunk(self.seen(x0.masked_fill(hide, self.mask_id)))
        return masked_cross_entropy(network, hidden, hide, x0)

    def chain_nats(self, network: Network, x0: Tensor, scored: Tensor, order: Tensor) -> Tensor:
        """One forward pass per scored token, with logits computed for that token alone."""
        z, paid = x0.masked_fill(scored, self.mask_id), torch.zeros(x0.shape, device=x0.device)
        for place in order.split(1, 1):
            now = torch.zeros_like(scored).scatter(1, place, True) & scored
            if now.any():
                paid = paid + masked_cross_entropy(network, network.trunk(self.seen(z)), now, x0)
                z = x0.where(now, z)
        return paid

    def chain_passes(self, scored: int) -> int:
        return scored

    def orders(self, scored: Tensor, noise: Noise) -> Tensor:
        """A uniformly random order: tokens are unmasked at independent times of one distribution."""
        return (scored + noise("order")).argsort(1)

    def order_refusal(self, kind: str) -> str | None:
        return None


def check_objective(objective: str) -> None:
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
