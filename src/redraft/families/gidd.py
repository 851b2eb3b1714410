"""GIDD: mask and uniform noise mixed.  von Ruette et al. 2025, arXiv:2503.04482.

A token survives to time t with probability alpha(t), else it is [MASK] or one of the V text ids, drawn uniformly; the law
pi_t of what it becomes moves with time (`Hybrid` in noise/schedules.py), from uniform at t = 0 to [MASK] at t = 1. So a
visible token may be wrong, and is predicted too. The network sees the corrupted text, both ways, and the clock
sigma = -log alpha. With z = x_t, r(z) the forward rate into z and IS(a, b) = a / b - log(a / b) - 1,

    nelbo = E_t r_t(z) / q_t(z | x) [ KL(q_t(. | x) | q_t(. | p)) + IS(q_t(z | x), q_t(z | p)) ]

Predicts: p(x0 at l | x_t without position l), the leave-one-out posterior, as Duo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from redraft.errors import UserError, unknown
from redraft.families.base import DiffusionFamily, clock, full_view
from redraft.families.softmax_mixture import LogMixture, three_ways
from redraft.network.device import sent
from redraft.noise.counter_rng import Key
from redraft.noise.kernels import marginal, posterior
from redraft.noise.schedules import Hybrid
from redraft.types import Batch, Network, Noise, Predict, TokenLoss, View

WEIGHTS = ("dynamic", "nelbo")
LATEST = 1 - 1e-9  # the bound is 0 / 0 at t = 1: t is clamped to this
FLOOR = 1e-30  # uniform noise on a text id, where there is none: keeps its logarithm finite


@dataclass(frozen=True)
class GIDD(DiffusionFamily):
    """`uniform` in [0, 1): the share of uniform noise at t = 1/2; 0 is the process of MDLM. `weights` of the divergences in
    training: "nelbo", those of the bound, or "dynamic", the paper's, which keep their ratios and stay small.
    """

    name: ClassVar[str] = "gidd"
    sampler: ClassVar[str] = "ancestral"
    exported: ClassVar[str] = "hybrid"
    clocked: ClassVar[bool] = True
    # Near t = 0 a wrong id has probability ~sqrt(t) and loss ~log(1/t) / t: with uniform t the variance is infinite.
    time_exponent: ClassVar[int] = 3
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

    @property
    def mask_id(self) -> int:
        return self.vocab

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        return self.per_token_loss(
            self.token_loss, network, batch, key, self.time_exponent if self.weights == "nelbo" else 1
        )

    def marginal(self, x0: Tensor, t: Tensor) -> Tensor:
        states = torch.eye(self.vocab + 1, dtype=t.dtype, device=t.device)
        return marginal(states[x0], self.schedule(t)[0].expand_as(x0), self.law(t))

    def posterior(self, p0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        alpha_t, alpha_s = (self.schedule(u)[0].expand_as(xt) for u in (t, s))
        states = torch.nn.functional.pad(p0, (0, 1))
        return posterior(states, xt, alpha_t, alpha_s, self.law(t), self.law(s))

    def corrupt(self, x0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        return self._drawn(t, noise("replacement")).where(noise("corrupt") >= self.schedule(t)[0], x0)

    def step(self, predict: Predict, xt: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        """The posterior as a three-way mixture: stay, draw from p0, or draw from pi_s."""
        t, s = (sent(u, xt.device) for u in (t, s))
        alpha_t, alpha_s = (self.schedule(u)[0] for u in (t, s))
        here = self._noise(xt, t)
        arrived = (here - alpha_t / alpha_s * self._noise(xt, s)).where(s < t, 0.0)
        new = self._drawn(s, sent(noise("replacement"), xt.device))
        return three_ways(predict, xt, noise, new, here, arrived, alpha_t, alpha_s)

    def view(self, tokens: Tensor, t: Tensor) -> View:
        return full_view(tokens, sigma=clock(self.schedule(t)[0]))

    def interpret(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits.log_softmax(-1)

    def token_nelbo(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        return self._charge(network, hidden, xt, x0, t, self.bound_weight)

    def token_loss(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        weight = self.bound_weight if self.weights == "nelbo" else self.dynamic_weight
        return self._charge(network, hidden, xt, x0, t, weight)

    def prior_nats(self) -> float:
        return 0.0

    def sample_noise(self, t: Tensor, noise: Noise) -> Tensor:
        return self._drawn(t, noise("prior"))

    def law(self, t: Tensor) -> Tensor:
        """pi_t over V text ids and [MASK]: [...] -> [..., V + 1]."""
        masked = self.process.masked(t)[..., None]
        return torch.cat([((1 - masked) / self.vocab).expand(*t.shape, self.vocab), masked], -1)

    def bound_weight(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """r_t(z) / q_t(z | x), [...] each: 1 / (t (1 - t)) at [MASK], half of that at a wrong id, and less at the true one."""
        alpha, each = self.schedule(t)[0], self.process.noise(t)[1]
        text = torch.where(z == x, each / (alpha + each), 1.0) / 2
        return torch.where(z == self.mask_id, 1.0, text) / (t * (1 - t))

    def dynamic_weight(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """2 at [MASK], 1 at a wrong id, B sqrt((1 - alpha) / alpha), at most 2, at the true one: as in their code."""
        alpha = self.schedule(t)[0]
        own = (self.process.mass / self.vocab * ((1 - alpha) / alpha).sqrt()).clamp(max=2)
        return torch.where(z == self.mask_id, 2.0, torch.where(z == x, own, 1.0))

    def _charge(
        self,
        network: Network,
        hidden: Tensor,
        xt: Tensor,
        x0: Tensor,
        t: Tensor,
        weight: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        t = t.clamp(max=LATEST).expand(xt.shape)
        others = xt, x0, self.schedule(t)[0], self.process.noise(t)[1], weight(xt, x0, t)
        return network.by_rule(weighed, hidden.flatten(0, 1), *(part.flatten() for part in others)).view(xt.shape)

    def _noise(self, z: Tensor, t: Tensor) -> Tensor:
        """(1 - alpha) pi at the ids `z`: [B, L], [B, 1] or [B, L] -> [B, L]."""
        masked, each = self.process.noise(t)
        return torch.where(z == self.mask_id, masked, each)

    def _drawn(self, t: Tensor, u: Tensor) -> Tensor:
        """pi_t at the uniforms `u`: ids [B, L]."""
        masked = self.process.masked(t)
        text = ((u - masked) / (1 - masked).clamp(min=FLOOR) * self.vocab).long().clamp(0, self.vocab - 1)
        return text.where(u >= masked, self.mask_id)


def weighed(logits: Tensor, z: Tensor, x: Tensor, alpha: Tensor, each: Tensor, weight: Tensor) -> Tensor:
    """`weight` [...] times the `divergence`."""
    return weight * divergence(logits, z, x, alpha, each)


def divergence(logits: Tensor, z: Tensor, x: Tensor, alpha: Tensor, each: Tensor) -> Tensor:
    """KL(q | b) + IS(q_z, b_z) of q = alpha x + noise and b = alpha p + noise, `each` the noise on any of K text ids.

    The noise on [MASK] (z = K) is the same in both, and so pays nothing. Over text ids, with g_j = log(b_j / each),

        KL = (alpha + each) log(alpha / each + 1) - alpha g_x - each sum_j g_j

    `logits` [..., K] of p, normalised or not; `z`, `x`, `alpha`, `each` [...] -> nats [...], float64. The K-wide work is done
    in the dtype of `logits`.
    """
    alpha, each = alpha.double(), each.double()
    scale, seen = alpha / each.clamp(min=FLOOR), z.clamp(max=logits.shape[-1] - 1)
    terms = LogMixture.apply(logits, scale.to(logits.dtype), torch.ones_like(scale, dtype=logits.dtype), seen, x)
    g, g_z, g_x = (term.double() for term in terms)
    kl = (alpha + each) * scale.log1p() - alpha * g_x - each * g
    log_ratio = torch.where(z == x, scale.log1p(), 0.0) - g_z
    return kl + torch.where(z == seen, log_ratio.expm1() - log_ratio, 0.0)
