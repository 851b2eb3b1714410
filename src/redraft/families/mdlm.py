"""MDLM: masked (absorbing) diffusion.  Sahoo et al. 2024, arXiv:2406.07524, eqs. 7-11; Shi et al. 2024, arXiv:2406.04329.

A token survives to time t with probability alpha(t), else it becomes [MASK]. The network sees everything, both ways, and
no clock; it predicts the hidden tokens. Visible tokens are carried over and [MASK] is never predicted (SUBS).
Predicts: p(x0 at l | visible tokens).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.families.base import Absorbing, full_view, masked_nats
from redraft.noise.draws import categorical
from redraft.noise.kernels import marginal
from redraft.noise.schedules import Linear, Schedule
from redraft.types import Network, Noise, Predict, View

OBJECTIVES = ("low_variance", "nelbo")


@dataclass(frozen=True)
class MDLM(Absorbing):
    """Trains on the plain cross-entropy of hidden tokens ("low_variance", arXiv:2602.15014) or on the bound ("nelbo").

    The schedule must end in alpha(1) = 0: whatever survived there would cost an infinite prior term.
    """

    name: ClassVar[str] = "mdlm"
    sampler: ClassVar[str] = "ancestral"
    vocab: int
    objective: str = "low_variance"
    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        check_objective(self.objective)

    @property
    def mask_id(self) -> int:
        return self.vocab

    def marginal(self, x0: Tensor, t: Tensor) -> Tensor:
        states = torch.eye(self.vocab + 1, dtype=t.dtype, device=t.device)
        return marginal(states[x0], self.schedule(t)[0].expand_as(x0), states[self.mask_id])

    def posterior(self, p0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Stay if visible; if masked, v with (alpha_s - alpha_t) / (1 - alpha_t) p0_v, else [MASK]."""
        reveal = self._reveal(t, s)[..., None]
        masked = torch.cat([reveal * p0, (1 - reveal).expand(*p0.shape[:-1], 1)], -1)
        stay = torch.nn.functional.one_hot(xt, self.vocab + 1).to(p0.dtype)
        return masked.where((xt == self.mask_id)[..., None], stay)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        return x0.masked_fill(noise("corrupt") >= self.schedule(t)[0], self.mask_id)

    def step(self, predict: Predict, xt: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        """Which positions move does not depend on the network: draw that first, then predict those rows alone."""
        moves = (xt == self.mask_id) & (noise("move") < self._reveal(t, s))
        if not moves.any():
            return xt
        return xt.masked_scatter(moves, categorical(predict(moves), noise("token")[moves]))

    def view(self, tokens: Tensor, t: Tensor) -> View:
        return full_view(tokens)

    def interpret(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return carry_over(logits.log_softmax(-1), tokens)

    def token_nelbo(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha) x cross-entropy of the hidden tokens; 1/t for the linear schedule."""
        alpha, dalpha = self.schedule(t)
        weight = (-dalpha / (1 - alpha)).to(hidden.dtype)
        return weight * masked_nats(network, hidden, xt == self.mask_id, x0)

    def token_loss(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        if self.objective == "nelbo":
            return self.token_nelbo(network, hidden, xt, x0, t)
        return masked_nats(network, hidden, xt == self.mask_id, x0)

    def prior_nats(self) -> float:
        return 0.0

    def prior(self, noise: Noise) -> Tensor:
        return torch.full_like(noise("prior"), self.mask_id, dtype=torch.int64)

    def hidden_nats(self, network: Network, x0: Tensor, hide: Tensor) -> Tensor:
        """Cross-entropy [B, L] of the tokens that `hide` [B, L] covers, given the others."""
        hidden = network.trunk(full_view(x0.masked_fill(hide, self.mask_id)))
        return masked_nats(network, hidden, hide, x0)

    def chain_nats(self, network: Network, x0: Tensor, scored: Tensor, order: Tensor) -> Tensor:
        """-log p(x | order) by token [B, L], unscored tokens given: one call a token, which alone is headed."""
        z, paid = x0.masked_fill(scored, self.mask_id), torch.zeros(x0.shape, device=x0.device)
        for place in order.split(1, 1):
            now = torch.zeros_like(scored).scatter(1, place, True) & scored
            if now.any():
                paid = paid + masked_nats(network, network.trunk(full_view(z)), now, x0)
                z = x0.where(now, z)
        return paid

    def orders(self, scored: Tensor, noise: Noise) -> Tensor:
        """Orders of generation [B, L]: given tokens, then a uniformly random order, as tokens move at independent times."""
        return (scored + noise("order")).argsort(1)

    def _reveal(self, t: Tensor, s: Tensor) -> Tensor:
        """P(a token hidden at t is visible at s)."""
        alpha_t, alpha_s = self.schedule(t)[0], self.schedule(s)[0]
        return (alpha_s - alpha_t) / (1 - alpha_t)


def carry_over(log_p: Tensor, tokens: Tensor) -> Tensor:
    """SUBS: a visible token is its own prediction. [..., V] log-probabilities, [...] ids; id V is [MASK]."""
    vocab = log_p.shape[-1]
    visible = (tokens < vocab)[..., None]
    own = torch.nn.functional.one_hot(tokens.clamp(max=vocab - 1), vocab).bool()
    return torch.where(visible, torch.where(own, 0.0, -torch.inf).to(log_p.dtype), log_p)


def check_objective(objective: str) -> None:
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
