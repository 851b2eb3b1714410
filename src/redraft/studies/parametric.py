"""The parametric loss law L(N, D) = E + A / N^alpha + B / D^beta.  Hoffmann et al. 2022, arXiv:2203.15556, approach 3.

Two engines. `huber_fit` minimises the sum over runs of Huber(log L(N, D) - log loss) with delta = 1e-3 (eq. 6 there):
the sum and not the mean, and to tight tolerances, for a loose optimiser stops early at other exponents (Besiroglu et
al. 2024, arXiv:2404.10102). `variable_projection` uses that for fixed (alpha, beta) the law is linear in E, A, B >= 0,
so that only a 2-D search is left (Czech et al. 2026, arXiv:2603.22339); it minimises squared relative error, and is one
of the starts of the other. Where the two disagree, outliers or a flat optimum deserve a look.

Intervals, 95 %, are a parametric bootstrap of the Huber fit: runs are redrawn around the fitted law with normal noise
of the size of its own log residuals, over nu = n - 5 degrees of freedom, and fitted again. Each resample first draws
that size, s^2 nu / chi^2_nu, for it is an estimate. Drawing runs instead would break the small grids of a study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from redraft.studies.multiplier import Array, Estimate, interval
from redraft.studies.records import Point

DELTA = 1e-3  # Huber's, in units of log loss
PARAMETERS = 5
FEWEST_RUNS = PARAMETERS + 1
EXPONENTS = (0.02, 2.5)  # searched; published ones are .2 to .6
TOO_FEW_RUNS = "too few runs"


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta, nats per token."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def at(self, params: Array, tokens: Array) -> Array:
        """Loss, nats per token."""
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta

    @property
    def allocation(self) -> float:
        """a of N* = k C^a, where C is proportional to N D: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)


@dataclass(frozen=True)
class Parametric:
    """Approach 3 for one family. Estimates and laws are None, and flagged, below six runs."""

    runs: int
    E: Estimate | None = None  # nats per token
    A: Estimate | None = None
    B: Estimate | None = None
    alpha: Estimate | None = None
    beta: Estimate | None = None
    allocation: Estimate | None = None  # a = beta / (alpha + beta)
    rms: float | None = None  # of the log residuals, over runs - 5 degrees of freedom, outliers capped
    law: Law | None = None
    projected: Law | None = None  # by variable projection
    flags: tuple[str, ...] = ()


def fit_parametric(points: Sequence[Point], seed: Sequence[int], resamples: int) -> Parametric:
    """The law of one family's runs by both engines, with intervals; flagged 'too few runs' below six."""
    if len(points) < FEWEST_RUNS:
        return Parametric(len(points), flags=(TOO_FEW_RUNS,))
    n, d, loss = (np.array([getattr(p, field) for p in points]) for field in ("params", "tokens", "loss"))
    if len(np.unique(n)) < 3 or len(np.unique(d)) < 3:
        return Parametric(len(points), flags=("fewer than three sizes or token counts",))
    projected = variable_projection(n, d, loss)
    law = huber_fit(n, d, loss, projected)
    rms = _rms(np.log(loss) - np.log(law.at(n, d)))
    draws = _draws(n, d, law, rms, np.random.default_rng(seed), resamples)
    values = [law.E, law.A, law.B, law.alpha, law.beta, law.allocation]
    floor, a, b, alpha, beta, allocation = (interval(value, draw) for value, draw in zip(values, draws))
    flags = _flags(law, floor)
    return Parametric(len(points), floor, a, b, alpha, beta, allocation, rms, law, projected, flags)


def _rms(residual: Array) -> float:
    """Root mean square over n - 5; outliers count as four robust standard deviations, or one would drown the noise."""
    size = np.sort(np.abs(residual))[PARAMETERS:]  # Huber's fit all but passes through five of the runs
    cap = 4 * np.median(size) / 0.6745
    return float(np.sqrt((np.minimum(size, cap) ** 2).mean()))


def _flags(law: Law, floor: Estimate) -> tuple[str, ...]:
    edge = [name for name in ("alpha", "beta") if not 1.02 * EXPONENTS[0] < getattr(law, name) < 0.98 * EXPONENTS[1]]
    flags = [f"{name} at the edge of the search" for name in edge]
    if floor.low is not None and floor.low < 0.01 * floor.value + 1e-6:
        flags.append("irreducible loss not identified")
    return tuple(flags)


def huber_fit(params: Array, tokens: Array, loss: Array, start: Law) -> Law:
    """The law that minimises the sum of Huber losses of the log residuals: the best of `start` and a grid of others."""
    axes = _Axes(params, tokens)
    theta = np.stack([axes.theta(start), *_starts(float(np.log(loss).mean()))])
    theta, objective = _descend(theta, axes, np.log(loss), iterations=400)
    return axes.law(theta[objective.argmin()])


def variable_projection(params: Array, tokens: Array, loss: Array) -> Law:
    """The law of least squared relative error: a zooming search over (ln alpha, ln beta), all else being linear."""
    axes = _Axes(params, tokens)
    low, high = np.log(EXPONENTS)
    centre, half = np.full(2, (low + high) / 2), (high - low) / 2
    for points, rounds in ((25, 1), (9, 40)):
        for _ in range(rounds):
            ticks = np.linspace(-half, half, points)
            logs = centre + np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
            logs = np.clip(logs, low, high)
            error, coefficients = _project(axes, np.exp(logs), loss)
            centre, linear = logs[error.argmin()], coefficients[error.argmin()]
            half *= 0.6
    with np.errstate(divide="ignore"):
        return axes.law(np.concatenate([np.log(linear), centre]))


class _Axes:
    """Sizes and token counts in centred logarithms, in which the law's parameters are all of order one.

    theta [..., 5] is (ln E, ln A', ln B', ln alpha, ln beta), with A' / e^(alpha x) = A / N^alpha.
    """

    def __init__(self, params: Array, tokens: Array) -> None:
        self.middle = np.array([np.log(params).mean(), np.log(tokens).mean()])
        self.x = np.log(params) - self.middle[0]  # [n]
        self.z = np.log(tokens) - self.middle[1]

    def theta(self, law: Law) -> Array:
        linear = np.log(np.maximum([law.E, law.A, law.B], 1e-300))  # a part that is absent stays negligible
        exponents = np.array([law.alpha, law.beta])
        return np.array([linear[0], *(linear[1:] - exponents * self.middle), *np.log(exponents)])

    def law(self, theta: Array) -> Law:
        exponents = np.exp(theta[3:])
        return Law(*np.exp([theta[0], *(theta[1:3] + exponents * self.middle)]).tolist(), *exponents.tolist())

    def log_loss(self, theta: Array) -> tuple[Array, Array]:
        """log L [S, n] and its derivatives [S, 5, n] at theta [S, 5]."""
        e, a, b = theta[:, 0, None], theta[:, 1, None], theta[:, 2, None]
        alpha, beta = np.exp(theta[:, 3, None]), np.exp(theta[:, 4, None])
        parts = np.stack([e + 0 * self.x, a - alpha * self.x, b - beta * self.z], axis=1)
        top = parts.max(1)
        shares = np.exp(parts - top[:, None])
        total = shares.sum(1)
        shares /= total[:, None]
        slopes = np.stack([-alpha * self.x * shares[:, 1], -beta * self.z * shares[:, 2]], axis=1)
        return top + np.log(total), np.concatenate([shares, slopes], axis=1)


def _starts(log_loss: float) -> list[Array]:
    """Thetas whose irreducible share of the loss, and whose alpha = beta, lie on a grid."""
    grid = [(e, k) for e in (0.05, 0.3, 0.55, 0.75, 0.9) for k in (0.1, 0.2, 0.35, 0.6, 1.0)]
    return [np.array([*(log_loss + np.log([e, (1 - e) / 2, (1 - e) / 2])), np.log(k), np.log(k)]) for e, k in grid]


def _descend(theta: Array, axes: _Axes, log_loss: Array, iterations: int) -> tuple[Array, Array]:
    """Levenberg-Marquardt from S starts at once on Huber losses of log_loss [S, n] or [n]: thetas [S, 5], sums [S].

    The weights are those of iteratively reweighted least squares, min(1, delta / |r|): each is a quadratic above
    Huber's loss that touches it, so a step that lowers the quadratic lowers the loss.
    """
    low, high = np.log(EXPONENTS)
    damping = np.full(len(theta), 1e-3)
    predicted, slopes = axes.log_loss(theta)
    objective = _huber(predicted - log_loss)
    for _ in range(iterations):
        residual = predicted - log_loss
        weights = np.minimum(1.0, DELTA / np.maximum(np.abs(residual), 1e-300))
        weighted = slopes * weights[:, None]
        hessian = weighted @ slopes.transpose(0, 2, 1)
        gradient = (weighted @ residual[:, :, None])[:, :, 0]
        diagonal = np.einsum("sii->si", hessian)
        diagonal += damping[:, None] * diagonal + 1e-14 * diagonal.max(1, keepdims=True) + 1e-300
        trial = theta - np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        trial[:, 3:] = np.clip(trial[:, 3:], low, high)
        trial_predicted, trial_slopes = axes.log_loss(trial)
        value = _huber(trial_predicted - log_loss)
        better = value < objective
        theta = np.where(better[:, None], trial, theta)
        predicted = np.where(better[:, None], trial_predicted, predicted)
        slopes = np.where(better[:, None, None], trial_slopes, slopes)
        if np.all(np.where(better, objective - value, 0) <= 1e-14 * objective) and np.all(damping > 1e6):
            break
        objective = np.where(better, value, objective)
        damping = np.where(better, damping / 5, np.minimum(damping * 4, 1e8))
    return theta, objective


def _huber(residual: Array) -> Array:
    size = np.abs(residual)
    return np.where(size < DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum(-1)


def _project(axes: _Axes, exponents: Array, loss: Array) -> tuple[Array, Array]:
    """Least squared relative error [G] and its (E, A', B') >= 0 [G, 3] for pairs (alpha, beta) [G, 2].

    Non-negative least squares with three unknowns: the best feasible one of the seven sets that may be positive.
    """
    parts = np.stack([np.zeros((len(exponents), len(loss))), -exponents[:, :1] * axes.x, -exponents[:, 1:] * axes.z], 2)
    design = np.exp(parts) / loss[:, None]  # [G, n, 3]
    error, best = np.full(len(exponents), np.inf), np.zeros((len(exponents), 3))
    for size in (1, 2, 3):
        for columns in map(list, combinations(range(3), size)):
            part = design[:, :, columns]
            solution = np.linalg.pinv(part, rcond=1e-12) @ np.ones(len(loss))
            misfit = ((np.einsum("gnk,gk->gn", part, solution) - 1) ** 2).sum(1)
            better = (misfit < error) & (solution >= 0).all(1)
            error = np.where(better, misfit, error)
            best[better] = 0.0
            best[np.ix_(better, columns)] = solution[better]
    return error, best


def _draws(params: Array, tokens: Array, law: Law, rms: float, rng: np.random.Generator, resamples: int) -> Array:
    """Resamples [6, R] of E, A, B, alpha, beta and a."""
    axes, dof = _Axes(params, tokens), len(params) - PARAMETERS
    sd = rms * np.sqrt(dof / rng.chisquare(dof, (resamples, 1)))
    log_loss = np.log(law.at(params, tokens)) + sd * rng.standard_normal((resamples, len(params)))
    theta, _ = _descend(np.repeat(axes.theta(law)[None], resamples, axis=0), axes, log_loss, iterations=60)
    laws = [axes.law(t) for t in theta]
    return np.array([[w.E, w.A, w.B, w.alpha, w.beta, w.allocation] for w in laws]).T
