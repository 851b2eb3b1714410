"""Data-constrained scaling (repeated epochs).  Muennighoff et al. 2023, arXiv:2305.16264.

With U unique tokens and R = D / U - 1 repetitions, training on D tokens is worth

    D' = U + U R* (1 - exp(-R / R*))

fresh ones: nearly D at first, U (1 + R*) at most. R* is fitted together with L(N, D'), by least squares of log loss, and
its interval is that of the profile likelihood. (The paper also lets excess parameters decay, with a second constant; a
study of a few sizes cannot tell the two apart, so only tokens decay here.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.scaling.laws.least_squares import PARAMETERS, SQUARES, Axes, Objective, descend
from redraft.scaling.laws.multiplier import LEVEL, Array, Estimate
from redraft.scaling.laws.parametric import Law, columns, variable_projection
from redraft.scaling.records import Point

REPEATED = 1.001  # epochs from which a run counts as one that repeats
FEWEST = 3  # repeated runs
_SEARCH = (0.1, 1000.0)  # of R*; the paper finds 15 for autoregressive models
_STEPS = 17


@dataclass(frozen=True)
class DataConstrained:
    """L(N, D') of a family with repeated data."""

    repeated: int  # runs
    epochs: float  # of the run with most
    decay: Estimate  # R*; an end beyond the search is None
    law: Law  # with D' for D


def effective_tokens(tokens: Array, unique: Array, decay: float) -> Array:
    """D' for D tokens of which `unique` are distinct, and R* = `decay`."""
    unique = np.minimum(unique, tokens)
    return unique + unique * decay * -np.expm1(-(tokens / unique - 1) / decay)


def fit_data_constrained(points: Sequence[Point]) -> DataConstrained | None:
    """The decay of repeated data in one family's runs; None without `unique_tokens`, or with too few that repeat."""
    n, d, loss = columns(points)
    unique = np.array([p.unique_tokens or p.tokens for p in points])
    repeated = int((d > REPEATED * unique).sum())
    if repeated < FEWEST or len(points) < PARAMETERS + 2:
        return None
    fitted = _Profile(n, d, unique, loss)
    near, far = np.log(_SEARCH)
    for _ in range(3):
        tried = np.linspace(near, far, _STEPS)
        best = int(np.argmin([fitted.squares(decay) for decay in np.exp(tried).tolist()]))
        near, far = float(tried[max(best - 1, 0)]), float(tried[min(best + 1, _STEPS - 1)])
    decay = float(np.exp(tried[best]))
    limit = _limit(fitted.squares(decay), len(loss))
    low, high = (_crossing(fitted, decay, edge, limit) for edge in _SEARCH)
    return DataConstrained(repeated, float((d / unique).max()), Estimate(decay, low, high), fitted.law(decay))


class _Profile:
    """The least sum of squared log residuals for each R*."""

    def __init__(self, params: Array, tokens: Array, unique: Array, loss: Array) -> None:
        self.params, self.tokens, self.unique, self.loss = params, tokens, unique, loss
        starts = [self._worth(decay) for decay in (*_SEARCH, float(np.sqrt(_SEARCH[0] * _SEARCH[1])))]
        self.starts = [variable_projection(params, worth, loss) for worth in starts]

    def _worth(self, decay: float) -> Array:
        return effective_tokens(self.tokens, self.unique, decay)

    def _fit(self, decay: float) -> tuple[Array, float]:
        """E, A, B, alpha, beta and the sum, from the laws of both ends of the search and its middle."""
        axes = Axes(self.params, self._worth(decay))
        theta = axes.theta(np.array([law.array for law in self.starts]))
        theta, squares = descend(theta, axes, Objective(np.log(self.loss), SQUARES), iterations=500)
        best = squares.argmin()
        return axes.plain(theta[best]), float(2 * squares[best])

    def squares(self, decay: float) -> float:
        return self._fit(decay)[1]

    def law(self, decay: float) -> Law:
        return Law(*self._fit(decay)[0].tolist())


def _limit(least: float, runs: int) -> float:
    from scipy.special import stdtrit

    dof = runs - PARAMETERS - 1
    return float(least * (1 + stdtrit(dof, (1 + LEVEL) / 2) ** 2 / dof) + 1e-12 * runs)


def _crossing(fitted: _Profile, decay: float, edge: float, limit: float) -> float | None:
    """R* between `decay` and `edge` where the sum of squares reaches its limit, by halving; None if it stays below."""
    if fitted.squares(edge) < limit:
        return None
    inside, outside = np.log([decay, edge]).tolist()
    for _ in range(12):
        middle = (inside + outside) / 2
        if fitted.squares(float(np.exp(middle))) < limit:
            inside = middle
        else:
            outside = middle
    return float(np.exp((inside + outside) / 2))
