"""Which runs and which budgets decide L(N, D): the law refitted without them.  Broderick et al. 2020, arXiv:2011.14999.

Every run is left out in turn, then every budget, and E, alpha, beta and a = beta / (alpha + beta) are compared with the
intervals of the whole fit. Refits start at the whole fit's law, all at once (`least_squares.descend`).

**Groups.** Leaving out one run at a time hides a group: each of its runs is held in place by the others (masking). All groups
of k runs are too many, so the first 2, ... K runs are left out of orders in which a group that decides stands together:
by the move of each parameter when a run alone is left out, upwards and downwards (the approximate maximum influence
perturbation of Broderick et al., with exact refits); and, which no masking touches, by loss, by tokens for each parameter
and by the size of the residual. Of each parameter the group that moves it furthest is kept.

**How many.** Deleting the best-chosen k of n clean runs moves a mean by k m_k / sqrt(n) standard errors, m_k, the mean of the
k largest of n normal numbers, being below 2.9 to n = 1000. With K = sqrt(n) / 3 that is at most .97 of the 1.96 at which an
interval ends: what leaves it is rarely chance. 245 runs have groups of up to 5; fewer than 36 runs have none (of 20 clean
runs the best-chosen pair leaves an interval in two studies of five).

**Budgets** are many runs, and those at the ends hold most of what is known of an exponent. Of a refit on part of clean data
the move has the variance V_part - V_all (Hausman 1978), so a budget counts as moving a parameter only where that goes beyond
the interval, and beyond the interval times sqrt(V_part / V_all - 1).

Of clean planted studies of 9 to 128 runs about one in ten has a run, and one in five a budget, that moves a parameter so:
these are questions to the data, not verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redraft.display import quantity
from redraft.scaling.laws.least_squares import Axes, Objective, descend
from redraft.scaling.laws.multiplier import Array, Estimate
from redraft.scaling.laws.parametric import FEWEST_RUNS, Law, Parametric, columns
from redraft.scaling.records import Point

NEARLY = 0.99  # of the furthest move: the first group that comes so near speaks for the others, simple words first
WATCHED = ("E", "alpha", "beta", "allocation")
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Without:
    """The law without some runs. `moved`: the parameters that leave the interval of the fit to all runs, furthest first."""

    runs: tuple[str, ...]
    budget: float | None  # FLOPs, where these are all the runs of a budget
    which: str  # what the runs of a group have in common; empty where there is no simple word for it
    E: float  # nats per token
    alpha: float
    beta: float
    allocation: float  # a = beta / (alpha + beta)
    moved: tuple[str, ...]


@dataclass(frozen=True)
class Influence:
    """The law of one family without each run, each budget, and the group of runs that moves each parameter furthest."""

    runs: tuple[Without, ...]
    budgets: tuple[Without, ...]  # those without which a law can be fitted
    groups: dict[str, Without]  # by parameter


def furthest(parts: Sequence[Without], parameter: str, fitted: Estimate) -> Without:
    """The part without which a parameter moves most."""
    return max(parts, key=lambda part: abs(getattr(part, parameter) - fitted.value))


def influence(points: Sequence[Point], fitted: Parametric) -> Influence | None:
    """Of the runs of one family, which need budgets, on its law; None where there is no law, or a run makes one."""
    if fitted.law is None or len(points) <= FEWEST_RUNS:
        return None
    refit = _Refit(points, fitted)
    alone = [rows for row in range(len(points)) if refit.enough(rows := np.array([row]))]
    budget_of = np.array([p.budget for p in points])
    budgets = [rows for budget in np.unique(budget_of) if refit.enough(rows := np.flatnonzero(budget_of == budget))]
    without_run, without_budget = refit.laws(alone), refit.laws(budgets)
    runs = tuple(refit.told(law, rows) for law, rows in zip(without_run, alone))
    told = tuple(refit.told(law, rows, of=float(budget_of[rows[0]])) for law, rows in zip(without_budget, budgets))
    return Influence(runs, told, _furthest_groups(refit, dict(zip([int(r[0]) for r in alone], without_run))))


class _Refit:
    """Warm-started fits without some of the runs."""

    def __init__(self, points: Sequence[Point], fitted: Parametric) -> None:
        assert fitted.law is not None
        self.law, self.names = fitted.law, [told(p) for p in points]
        self.estimates: dict[str, Estimate] = {name: getattr(fitted, name) for name in WATCHED}
        self.n, self.d, self.loss = columns(points)
        self.axes = Axes(self.n, self.d)
        self.start = self.axes.theta(self.law.array)
        self.slopes = self.axes.log_loss(self.start[None])[1][0]  # [5, n]

    def enough(self, rows: Indices) -> bool:
        """Whether a law can be fitted to the other runs."""
        kept = np.delete(np.arange(len(self.loss)), rows)
        return len(kept) >= FEWEST_RUNS and min(len(np.unique(self.n[kept])), len(np.unique(self.d[kept]))) >= 3

    def laws(self, left: Sequence[Indices]) -> list[Law]:
        """The law without each of these sets of runs."""
        if not left:
            return []
        counts = np.ones((len(left), len(self.loss)))
        for row, rows in enumerate(left):
            counts[row, rows] = 0.0
        starts = np.repeat(self.start[None], len(left), 0)
        theta, _ = descend(starts, self.axes, Objective(np.log(self.loss), counts=counts), iterations=200)
        return [Law(*row) for row in self.axes.plain(theta).tolist()]

    def moves(self, law: Law) -> Array:
        """How far each watched parameter goes, in distances to the end of its interval on that side; 0 where it has no end."""
        return np.array([_move(getattr(law, name), estimate) for name, estimate in self.estimates.items()])

    def told(self, law: Law, rows: Indices, of: float | None = None, which: str = "") -> Without:
        sizes = np.abs(self.moves(law))
        limits = np.ones(len(WATCHED)) if of is None else np.maximum(1.0, self._limits(rows))
        moved = tuple(WATCHED[i] for i in np.argsort(-sizes, kind="stable") if sizes[i] > limits[i])
        names = tuple(self.names[row] for row in rows)
        return Without(names, of, which, law.E, law.alpha, law.beta, law.allocation, moved)

    def _limits(self, rows: Indices) -> Array:
        """sqrt(V_part / V_all - 1) of each watched parameter."""
        part, whole = self._variances(np.delete(self.slopes, rows, 1)), self._variances(self.slopes)
        return np.sqrt(np.maximum(part / whole - 1, 0.0))

    def _variances(self, slopes: Array) -> Array:
        """Of the logarithms of E, alpha, beta and of ln(beta / alpha), which moves with a; up to the noise."""
        covariance = np.linalg.pinv(slopes @ slopes.T, rcond=1e-13, hermitian=True)
        combined = np.zeros((len(WATCHED), len(slopes)))
        combined[[0, 1, 2, 3, 3], [0, 3, 4, 3, 4]] = 1.0, 1.0, 1.0, -1.0, 1.0
        variances: Array = np.einsum("wi,ij,wj->w", combined, covariance, combined)
        return np.maximum(variances, 1e-300)


def _move(value: float, fitted: Estimate) -> float:
    end = fitted.high if value > fitted.value else fitted.low
    if end is None or end == fitted.value or not math.isfinite(value):
        return 0.0
    return (value - fitted.value) / abs(end - fitted.value)


def _furthest_groups(refit: _Refit, without_run: Mapping[int, Law]) -> dict[str, Without]:
    """Of each parameter the group that moves it furthest; empty where runs are too few for groups."""
    most = int(math.sqrt(len(refit.loss)) / 3)
    tried = [(rows[:k], which) for rows, which in _orders(refit, without_run) for k in range(2, most + 1)]
    groups = [(rows, which) for rows, which in tried if refit.enough(rows)]
    laws = refit.laws([rows for rows, _ in groups])
    sizes = np.abs([refit.moves(law) for law in laws])
    near = sizes >= NEARLY * sizes.max(0) if groups else sizes
    best = {name: int(near[:, place].argmax()) for place, name in enumerate(WATCHED)} if groups else {}
    return {name: refit.told(laws[i], groups[i][0], which=groups[i][1]) for name, i in best.items()}


def _orders(refit: _Refit, without_run: Mapping[int, Law]) -> Iterator[tuple[Indices, str]]:
    """Orders of the runs in which a group that decides may come first, those with a simple word for it before the others."""
    ranked = lambda values: np.argsort(values, kind="stable")
    residual = np.log(refit.loss) - np.log(refit.law.at(refit.n, refit.d))
    yield ranked(-refit.loss), "of highest loss"
    yield ranked(refit.loss), "of lowest loss"
    yield ranked(refit.d / refit.n), "of fewest tokens for a parameter"
    yield ranked(-refit.d / refit.n), "of most tokens for a parameter"
    yield ranked(-np.abs(residual)), "furthest from the law"
    moves = np.zeros((len(refit.loss), len(WATCHED)))
    for row, law in without_run.items():
        moves[row] = refit.moves(law)
    for column in moves.T:
        yield ranked(column), ""
        yield ranked(-column), ""


def told(p: Point) -> str:
    """A run in a few words: its name, or what it is."""
    return p.name or f"{quantity(p.params)} on {quantity(p.tokens)} tokens, loss {p.loss:.4g}"
