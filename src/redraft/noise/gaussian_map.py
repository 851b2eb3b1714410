"""The map from Gaussian to uniform-state diffusion: Sahoo et al. 2025 (Duo, arXiv:2506.10892), section 3.

A one-hot token in V-dimensional Gaussian noise, w = A onehot(x) + S eps with A^2 = sigmoid(-gamma), S^2 = sigmoid(gamma),
has an argmax z that is uniform-state diffusion of x:

    P(z = x) = int phi(y - mu) Phi(y)^(V-1) dy,  mu = A / S = exp(-gamma / 2),   alpha = (V P(z = x) - 1) / (V - 1)

Time runs in gamma: gamma(t) = low + t (high - low).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.special import erfcx, log_ndtr, ndtri

from redraft.noise.counter_rng import Key, uniform
from redraft.noise.schedules import Schedule
from redraft.types import Noise

STEP = 1 / 16  # of the trapezoidal rule, which converges faster than any power for this analytic integrand
REACH = 10.0  # standard deviations of the integrand that are summed
# Where alpha runs from and to in training: its values at gamma = -3.55 and -1.85 for GPT-2's ids, the paper's range.
FIRST, LAST = 0.9455, 0.0493


@dataclass(frozen=True)
class GaussianMap(Schedule):
    """alpha(t) and its derivative over V = `vocab` ids, for gamma from `low` to `high`.

    `degree` 0 sums the integral at every call; otherwise a Chebyshev interpolant of that degree stands for alpha, and its own
    derivative for alpha', so that the two still belong together.
    """

    vocab: int
    low: float
    high: float
    degree: int = 0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        width = self.high - self.low
        if not self.degree:
            alpha, slope = uniform_alpha(self.gamma(t), self.vocab)
            return alpha, slope * width
        value, derivative = _polynomials(self.vocab, self.low, self.high, self.degree)
        return _horner(value, 2 * t - 1), 2 * _horner(derivative, 2 * t - 1)

    def gamma(self, t: Tensor) -> Tensor:
        return self.low + t * (self.high - self.low)


def uniform_alpha(gamma: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """alpha and d alpha / d gamma, float64, of the shape of `gamma`: the integral and its exact derivative.

    d P / d mu = int (y - mu) phi(y - mu) Phi(y)^(V-1) dy, and d mu / d gamma = -mu / 2.
    """
    mu = signal(gamma.double())
    x = torch.arange(-REACH, REACH + STEP, STEP, dtype=torch.float64, device=gamma.device)
    density = STEP * (-x * x / 2).exp() / math.sqrt(2 * math.pi)
    # log Phi is close to 0 where V - 1 rivals are beaten: summed in log space.
    won = density * ((vocab - 1) * log_ndtr(mu[..., None] + x)).exp()
    scale = vocab / (vocab - 1)
    return scale * won.sum(-1) - 1 / (vocab - 1), -scale * mu / 2 * (x * won).sum(-1)


def signal(gamma: Tensor) -> Tensor:
    """mu = A / S, the signal-to-noise ratio of amplitudes."""
    return (-gamma / 2).exp()


def amplitudes(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """A and S."""
    return (-gamma).sigmoid().sqrt(), gamma.sigmoid().sqrt()


@lru_cache
def gamma_at(alpha: float, vocab: int) -> float:
    """The gamma at which alpha falls to that value, by bisection."""
    low, high = -40.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        above = float(uniform_alpha(torch.tensor(middle, dtype=torch.float64), vocab)[0]) > alpha
        low, high = (middle, high) if above else (low, middle)
    return high


@lru_cache
def _polynomials(vocab: int, low: float, high: float, degree: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Coefficients in u = 2 t - 1, lowest first, of alpha and of d alpha / du."""
    exact = GaussianMap(vocab, low, high)
    at = lambda u: exact(torch.from_numpy((np.asarray(u) + 1) / 2))[0].numpy()
    series = np.polynomial.Chebyshev.interpolate(at, degree)
    value = series.convert(kind=np.polynomial.Polynomial)
    return tuple(value.coef.tolist()), tuple(value.deriv().coef.tolist())


def _horner(coefficients: tuple[float, ...], u: Tensor) -> Tensor:
    total = torch.zeros_like(u)
    for c in reversed(coefficients):
        total = total * u + c
    return total


def tempered(x0: Tensor, gamma: Tensor, gaussians: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """z = argmax w [B, L] and softmax(w / tau) [B, L, V], by definition. `gamma` [B, 1], `gaussians` [B, L, V]."""
    a, s = (part[..., None] for part in amplitudes(gamma))
    w = (s * gaussians).scatter_add(-1, x0[..., None], a.expand(*x0.shape, 1))
    return w.argmax(-1), (w / tau).softmax(-1)


@dataclass(frozen=True)
class OrderStatistics:
    """The Gaussians at a position that decide the argmax: the true token's, and the k largest of the other V - 1 with their
    ids. All gammas share them, so z_t is a deterministic path in time."""

    own: Tensor  # [B, L] float64
    rivals: Tensor  # [B, L, k] float64, falling
    ids: Tensor  # [B, L, k] ids of the rivals, none the token itself

    def argmax(self, x0: Tensor, gamma: Tensor) -> Tensor:
        """z [B, L]: the token where mu + own is above the best rival, else that rival. `gamma` [B, 1]."""
        return x0.where(signal(gamma) + self.own >= self.rivals[..., 0], self.ids[..., 0])

    def softmax(self, x0: Tensor, gamma: Tensor, tau: float, vocab: int) -> tuple[Tensor, Tensor]:
        """The largest weights of softmax(w / tau): float64 [B, L, 1 + k] and whose they are, the token first.

        The V - 1 - k rivals below are in the denominator by their mean, given that they are below; their own weights are left
        out. That is the approximation; which of these k + 1 is largest is exact.
        """
        a, s = (part[..., None] for part in amplitudes(gamma))
        w = torch.cat([a + s * self.own[..., None], s * self.rivals], -1) / tau
        below = _log_mean_exp_below(self.rivals[..., -1:], s / tau) + math.log(
            max(vocab - 1 - self.ids.shape[-1], 1e-300)
        )
        log_total = torch.cat([w, below], -1).logsumexp(-1, keepdim=True)
        return (w - log_total).exp(), torch.cat([x0[..., None], self.ids], -1)


def race(x0: Tensor, vocab: int, rivals: int, noise: Noise) -> OrderStatistics:
    """The law of V Gaussians by their order statistics: no [B, L, V]. `rivals` k, at most V - 1.

    The largest of n uniforms is U^(1/n), the next U^(1/(n-1)) of that, and so on, in logs; which ids they are is a draw of k
    distinct ones other than x0.
    """
    log_u, values, taken = torch.zeros_like(x0, dtype=torch.float64), [], [x0]
    for number in range(rivals):
        left = vocab - 1 - number
        log_u = log_u + _open(noise(f"rival:{number}")).log() / left
        values.append(_normal(log_u))
        taken.append(_another((noise(f"rival id:{number}") * left).long(), taken))
    return OrderStatistics(_normal(_open(noise("own")).log()), torch.stack(values, -1), torch.stack(taken[1:], -1))


def gaussians(key: Key, index: Tensor, length: int, vocab: int) -> Tensor:
    """[B, L, V] standard Gaussians, float64, each a counter's own."""
    place, text = torch.arange(length, device=index.device)[:, None], torch.arange(vocab, device=index.device)
    return _normal(_open(uniform(key, index[:, None, None], place, text)).log())


def _another(rank: Tensor, taken: list[Tensor]) -> Tensor:
    """The id of that rank among those not taken."""
    for one in torch.stack(taken, -1).sort(-1).values.unbind(-1):
        rank = rank + (rank >= one)
    return rank


def _open(u: Tensor) -> Tensor:
    """k / 2^53 in [0, 1) moved half a step, into (0, 1)."""
    return (u + 2.0**-54).clamp(max=1 - 2.0**-53)


def _normal(log_u: Tensor) -> Tensor:
    """Standard Gaussians from log-uniforms; the upper tail, where the largest of many are, keeps its digits."""
    return torch.where(log_u < -math.log(2), ndtri(log_u.exp()), -ndtri(-log_u.expm1()))


def _log_mean_exp_below(bound: Tensor, scale: Tensor) -> Tensor:
    """log E[exp(scale e) | e < bound] of a standard Gaussian e, which is exp(scale^2 / 2) Phi(bound - scale) / Phi(bound).

    For scale > bound it is computed by erfcx(u) = exp(u^2) erfc(u), so that large terms such as scale^2 / 2 do not cancel.
    """
    far = (erfcx(((scale - bound) / math.sqrt(2)).clamp(min=0)) / 2).log() + scale * bound - bound * bound / 2
    near = scale * scale / 2 + log_ndtr(bound - scale)
    return torch.where(scale > bound, far, near) - log_ndtr(bound)
