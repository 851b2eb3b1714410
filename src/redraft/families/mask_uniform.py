"""Families whose noise is [MASK] and uniform mixed: `MaskUniform`, what GIDD and XDLM share.

    q(x_t | x_0) = alpha x_0 + masked [MASK] + each 1_text,   masked + V each = 1 - alpha

They differ in how alpha, `masked` and `each` move with time. A visible token may be wrong, and is predicted too; the network
sees the corrupted text, both ways, and the clock sigma = -log alpha. With z = x_t, r(z) the forward rate into z and
IS(a, b) = a / b - log(a / b) - 1, for every such process (von Ruette et al. 2025, arXiv:2503.04482)

    nelbo = E_t r_t(z) / q_t(z | x) [ KL(q_t(. | x) | q_t(. | p)) + IS(q_t(z | x), q_t(z | p)) ]
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from redraft.families.base import DiffusionFamily
from redraft.families.softmax_mixture import LogMixture, three_ways
from redraft.network.device import sent
from redraft.noise.kernels import marginal, posterior
from redraft.types import Network, Noise, Predict

FLOOR = 1e-30  # uniform noise on a text id, where there is none: keeps its logarithm finite


class MaskUniform(DiffusionFamily):
    """K = V + 1 states; uniform noise falls on text ids alone.

    Predicts: p(x0 at l | x_t without position l), the leave-one-out posterior, as Duo.
    """

    latest: ClassVar[float] = 1 - 1e-9  # the bound is 0 / 0 where no text is left, at t = 1: t is clamped to this

    @abstractmethod
    def masked(self, t: Tensor) -> Tensor:
        """pi_t([MASK]), of the shape of `t`; each text id has an even share of the rest."""

    @abstractmethod
    def noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(1 - alpha) pi_t at [MASK] and at any text id, each of the shape of `t`."""

    @abstractmethod
    def bound_weight(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """r_t(z) / q_t(z | x), the bound's weight on the `divergence`: [...] each."""

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

    def token_nelbo(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        t = t.clamp(max=self.latest)
        return self.divergences(network, hidden, xt, x0, t, self.bound_weight(xt, x0, t))

    def sample_noise(self, t: Tensor, noise: Noise) -> Tensor:
        return self._drawn(t, noise("prior"))

    def law(self, t: Tensor) -> Tensor:
        """pi_t over V text ids and [MASK]: [...] -> [..., V + 1]."""
        masked = self.masked(t)[..., None]
        return torch.cat([((1 - masked) / self.vocab).expand(*t.shape, self.vocab), masked], -1)

    def divergences(
        self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor, weight: Tensor
    ) -> Tensor:
        """`weight` [B, L] times the `divergence` of the prediction, nats [B, L], at times up to `latest`."""
        parts = xt, x0, self.schedule(t)[0], self.noise(t)[1], weight
        others = (part.expand(xt.shape).flatten() for part in parts)
        return network.by_rule(weighed, hidden.flatten(0, 1), *others).view(xt.shape)

    def _noise(self, z: Tensor, t: Tensor) -> Tensor:
        """(1 - alpha) pi at the ids `z`: [B, L], [B, 1] or [B, L] -> [B, L]."""
        masked, each = self.noise(t)
        return torch.where(z == self.mask_id, masked, each)

    def _drawn(self, t: Tensor, u: Tensor) -> Tensor:
        """pi_t at the uniforms `u`: ids [B, L]."""
        masked = self.masked(t)
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
