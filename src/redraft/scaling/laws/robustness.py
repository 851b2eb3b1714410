"""Other intervals of L(N, D) than the parametric bootstrap: profile likelihood, and resampled runs.

Profile likelihood: E, alpha or beta is held at a value and all else fitted by least squares of log loss; the interval is
where the sum of squares stays below its minimum times 1 + t^2 / nu, t Student's quantile for nu = n - 5. It may be
lopsided, as the likelihood is. Runs drawn again, within each budget so that no IsoFLOP curve is lost: that assumes
neither normal noise nor one size of it, but needs many runs, so it is done from `MANY_RUNS` on with four in each budget.
Seeds of a cell are runs like others: few cells have more than one, and a bootstrap over those alone would know less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redraft.scaling.laws.least_squares import EXPONENTS, PARAMETERS, SQUARES, Axes, Objective, descend
from redraft.scaling.laws.multiplier import LEVEL, Array, Estimate
from redraft.scaling.laws.parametric import Law, columns, estimates
from redraft.scaling.records import Point

MANY_RUNS = 30
_NAMES = ("E", "A", "B", "alpha", "beta", "allocation")
_PROFILED = {"E": 0, "alpha": 3, "beta": 4}  # places in theta
_STEPS = 13


@dataclass(frozen=True)
class Robustness:
    """Intervals of one family's L(N, D)."""

    profile: dict[str, Estimate]  # of E, alpha, beta, about the least-squares fit; an end beyond the search is None
    runs: dict[str, Estimate] | None  # of all five and a; None where runs are too few


def robustness(points: Sequence[Point], law: Law, seed: Sequence[int], resamples: int) -> Robustness:
    """Both kinds of interval about the law of a family's runs, which need budgets."""
    n, d, loss = columns(points)
    axes, log_loss = Axes(n, d), np.log(loss)
    start = axes.theta(law.array)
    profile = {name: _profile(axes, log_loss, start, place) for name, place in _PROFILED.items()}
    fewest = min(Counter(p.budget for p in points).values())
    if len(points) < MANY_RUNS or fewest < 4:
        return Robustness(profile, None)
    counts = _counts(points, np.random.default_rng(seed), resamples)
    theta, _ = descend(np.repeat(start[None], resamples, 0), axes, Objective(log_loss, counts=counts), iterations=200)
    return Robustness(profile, dict(zip(_NAMES, estimates(law, axes.plain(theta)))))


def _counts(points: Sequence[Point], rng: np.random.Generator, resamples: int) -> Array:
    """How often each run is drawn [R, n], with as many runs in each budget as there are."""
    budgets = np.array([p.budget for p in points])
    counts = np.zeros((resamples, len(points)))
    for budget in np.unique(budgets):
        own = np.flatnonzero(budgets == budget)
        counts[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=resamples)
    return counts


def _profile(axes: Axes, log_loss: Array, start: Array, place: int) -> Estimate:
    """Where the sum of squares crosses its limit on either side of the minimum: a coarse search, then finer ones."""
    from scipy.special import stdtrit

    squares = Objective(log_loss, SQUARES)
    best, least = descend(start[None], axes, squares, iterations=500)
    dof = len(log_loss) - PARAMETERS
    limit = least[0] * (1 + stdtrit(dof, (1 + LEVEL) / 2) ** 2 / dof) + 1e-12 * len(log_loss) / 2
    ridge, error = _ridge(axes, best[0], place, 2 * limit / dof)
    edges = np.log(EXPONENTS) if place > 2 else np.array([best[0, 0] - 12, log_loss.min()])
    held = lambda values: _held(axes, squares, best[0], place, ridge, values) > limit
    near = float(best[0, place])
    ends = []
    for edge, sign in zip(edges.tolist(), (-1, 1)):
        step = near + sign * min(8 * error, abs(edge - near))
        found = _crossing(held, near, step)
        ends.append(_crossing(held, step, edge) if found is None else found)
    low, high = (None if end is None else float(np.exp(end)) for end in ends)
    return Estimate(float(np.exp(near)), 0.0 if place == 0 and low is None else low, high)


def _crossing(over: Callable[[Array], NDArray[np.bool_]], near: float, far: float) -> float | None:
    """The first value from `near` to `far` that is over the limit; None where none is."""
    for _ in range(3):
        tried = np.linspace(near, far, _STEPS)
        outside = over(tried)
        if not outside.any():
            return None
        first = int(outside.argmax())
        near, far = float(tried[max(first - 1, 0)]), float(tried[first])
    return (near + far) / 2


def _ridge(axes: Axes, best: Array, place: int, variance: float) -> tuple[Array, float]:
    """How all parameters move with the one held, to first order, and the standard error of that one."""
    slopes = axes.log_loss(best[None])[1][0]
    covariance = np.linalg.pinv(slopes @ slopes.T, rcond=1e-13)
    spread = max(float(covariance[place, place]), 1e-300)
    return covariance[:, place] / spread, float(np.sqrt(variance * spread))


def _held(axes: Axes, squares: Objective, best: Array, place: int, ridge: Array, values: Array) -> Array:
    """Least sums of squares with one parameter held at each of the values [S]."""
    theta = best + np.clip(values[:, None] - best[place], -1, 1) * ridge
    theta[:, 3:] = np.clip(theta[:, 3:], *np.log(EXPONENTS))
    theta[:, place] = values
    free = tuple(i != place for i in range(PARAMETERS))
    return descend(theta, axes, Objective(squares.log_loss, SQUARES, free=free), iterations=150)[1]
