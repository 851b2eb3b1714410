"""The parametric loss law L(N, D) = E + A / N^alpha + B / D^beta.  Hoffmann et al. 2022, arXiv:2203.15556, approach 3.

Two methods. `huber_fit` minimises the sum over runs of Huber(log L(N, D) - log loss) with delta = 1e-3 (eq. 6 there):
the sum and not the mean, and to tight tolerances, for a loose optimiser stops early at other exponents (Besiroglu et
al. 2024, arXiv:2404.10102). `variable_projection` uses that for fixed (alpha, beta) the law is linear in E, A, B >= 0,
so that only a 2-D search is left (Czech et al. 2026, arXiv:2603.22339); it minimises squared relative error, and is one
of the starts of the other. Where the two disagree, outliers or a flat optimum deserve a look.

Intervals, 95 %, are a parametric bootstrap of the Huber fit: runs are redrawn around the fitted law with normal noise
of the size of its own log residuals, over nu = n - 5 degrees of freedom, and fitted again. Each resample first draws
that size, s^2 nu / chi^2_nu, for it is an estimate. Drawing runs instead would break the small grids of a study; from
`MANY_RUNS` on it is done as well (`redraft.scaling.laws.robustness`), for it needs no normal noise of one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from redraft.scaling.laws.least_squares import DELTA, EXPONENTS, PARAMETERS, Axes, Objective, descend
from redraft.scaling.laws.multiplier import Array, Estimate, interval
from redraft.scaling.records import Point

__all__ = ["DELTA", "Law", "Parametric", "fit_parametric", "huber_fit", "variable_projection"]
FEWEST_RUNS = PARAMETERS + 1
TOO_FEW_RUNS = "too few runs"
UNIDENTIFIED = "irreducible loss not identified"
PRECISION = 1e-6  # a loss is never known better than this fraction of itself: files round


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta, nats per token."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @property
    def array(self) -> Array:
        """E, A, B, alpha, beta [5]."""
        return np.array([self.E, self.A, self.B, self.alpha, self.beta])

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
    draws: Array | None = field(default=None, repr=False, compare=False)  # [R, 5] of E, A, B, alpha, beta


def fit_parametric(points: Sequence[Point], seed: Sequence[int], resamples: int) -> Parametric:
    """The law of one family's runs by both engines, with intervals; flagged 'too few runs' below six."""
    if len(points) < FEWEST_RUNS:
        return Parametric(len(points), flags=(TOO_FEW_RUNS,))
    n, d, loss = columns(points)
    if len(np.unique(n)) < 3 or len(np.unique(d)) < 3:
        return Parametric(len(points), flags=("fewer than three sizes or token counts",))
    projected = variable_projection(n, d, loss)
    law = huber_fit(n, d, loss, projected)
    rms = _rms(np.log(loss) - np.log(law.at(n, d)))
    draws = _draws(n, d, law, rms, np.random.default_rng(seed), resamples)
    floor, a, b, alpha, beta, allocation = estimates(law, draws)
    flags = _flags(law, floor)
    if UNIDENTIFIED in flags:
        floor = replace(floor, low=0.0)  # it is searched as a logarithm, which never gets there
    return Parametric(len(points), floor, a, b, alpha, beta, allocation, rms, law, projected, flags, draws)


def columns(points: Sequence[Point]) -> tuple[Array, Array, Array]:
    """Parameters, training tokens and losses (nats per token), each [n]."""
    n, d, loss = np.array([(p.params, p.tokens, p.loss) for p in points]).T
    return n, d, loss


def estimates(law: Law, draws: Array) -> list[Estimate]:
    """E, A, B, alpha, beta and a = beta / (alpha + beta) of a law with resamples [R, 5] of the first five."""
    values = [*law.array.tolist(), law.allocation]
    allocation = draws[:, 4] / (draws[:, 3] + draws[:, 4])
    return [interval(value, draw) for value, draw in zip(values, [*draws.T, allocation])]


def _rms(residual: Array) -> float:
    """Root mean square over n - 5; outliers count as four robust standard deviations, or one would drown the noise."""
    size = np.sort(np.abs(residual))[PARAMETERS:]  # Huber's fit all but passes through five of the runs
    cap = 4 * np.median(size) / 0.6745
    return max(float(np.sqrt((np.minimum(size, cap) ** 2).mean())), PRECISION)


def _flags(law: Law, floor: Estimate) -> tuple[str, ...]:
    edge = [name for name in ("alpha", "beta") if not 1.02 * EXPONENTS[0] < getattr(law, name) < 0.98 * EXPONENTS[1]]
    flags = [f"{name} at the edge of the search" for name in edge]
    if floor.low is not None and floor.low < 0.01 * floor.value + 1e-6:
        flags.append(UNIDENTIFIED)
    return tuple(flags)


def huber_fit(params: Array, tokens: Array, loss: Array, start: Law) -> Law:
    """The law that minimises the sum of Huber losses of the log residuals: the best of `start` and a grid of others."""
    axes = Axes(params, tokens)
    theta = np.stack([axes.theta(start.array), *_starts(float(np.log(loss).mean()))])
    theta, objective = descend(theta, axes, Objective(np.log(loss)), iterations=1000)
    return _law(axes, theta[objective.argmin()])


def variable_projection(params: Array, tokens: Array, loss: Array) -> Law:
    """The law of least squared relative error: a zooming search over (ln alpha, ln beta), all else being linear.

    Gauss-Newton steps on all five at the end: squared errors alone lose half of the digits.
    """
    axes = Axes(params, tokens)
    low, high = np.log(EXPONENTS)
    centre, half = np.full(2, (low + high) / 2), (high - low) / 2
    for points, rounds in ((25, 1), (9, 20)):
        for _ in range(rounds):
            ticks = np.linspace(-half, half, points)
            logs = centre + np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
            logs = np.clip(logs, low, high)
            error, coefficients = _project(axes, np.exp(logs), loss)
            centre, linear = logs[error.argmin()], coefficients[error.argmin()]
            half *= 0.6
    with np.errstate(divide="ignore"):
        return _law(axes, _polished(axes, np.concatenate([np.log(linear), centre]), np.log(loss)))


def _polished(axes: Axes, theta: Array, log_loss: Array) -> Array:
    """Gauss-Newton on the relative errors from theta [5], as long as they fall; an absent part stays absent."""
    free = np.isfinite(theta)
    free[3:] &= (theta[3:] > np.log(EXPONENTS[0])) & (theta[3:] < np.log(EXPONENTS[1]))
    errors, slopes = _relative(axes, theta, log_loss)
    for _ in range(50):
        step = np.zeros(PARAMETERS)
        step[free] = np.linalg.lstsq(slopes[:, free], -errors, rcond=1e-15)[0]
        trial = theta + step
        if np.abs(step).max() > 1 or not np.all(
            (trial[3:] >= np.log(EXPONENTS[0])) & (trial[3:] <= np.log(EXPONENTS[1]))
        ):
            break
        trial_errors, trial_slopes = _relative(axes, trial, log_loss)
        if (trial_errors**2).sum() >= (errors**2).sum():
            break
        theta, errors, slopes = trial, trial_errors, trial_slopes
    return theta


def _relative(axes: Axes, theta: Array, log_loss: Array) -> tuple[Array, Array]:
    """Relative errors [n] and their derivatives [n, 5]."""
    predicted, slopes = axes.log_loss(theta[None])
    ratio = np.exp(predicted[0] - log_loss)
    return ratio - 1, (slopes[0] * ratio).T


def _law(axes: Axes, theta: Array) -> Law:
    return Law(*axes.plain(theta).tolist())


def _starts(log_loss: float) -> list[Array]:
    """Thetas whose irreducible share of the loss, and whose alpha = beta, lie on a grid."""
    grid = [(e, k) for e in (0.05, 0.3, 0.55, 0.75, 0.9) for k in (0.1, 0.2, 0.35, 0.6, 1.0)]
    return [np.array([*(log_loss + np.log([e, (1 - e) / 2, (1 - e) / 2])), np.log(k), np.log(k)]) for e, k in grid]


def _project(axes: Axes, exponents: Array, loss: Array) -> tuple[Array, Array]:
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
    """Resamples [R, 5] of E, A, B, alpha and beta."""
    axes, dof = Axes(params, tokens), len(params) - PARAMETERS
    sd = rms * np.sqrt(dof / rng.chisquare(dof, (resamples, 1)))
    log_loss = np.log(law.at(params, tokens)) + sd * rng.standard_normal((resamples, len(params)))
    starts = np.repeat(axes.theta(law.array)[None], resamples, axis=0)
    return axes.plain(descend(starts, axes, Objective(log_loss), iterations=200)[0])
