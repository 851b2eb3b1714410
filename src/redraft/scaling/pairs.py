"""Two ways of training one family, compared seed by seed: the difference of their losses, and what it is worth in compute.

Runs of one seed share weights at the start, rows and noise, so what they have in common cancels. Of an arm whose loss at C
FLOPs is l, the compute factor is

    k = C / C',   l'(C') = l,

with l' the loss of the other way at the same size, linear in ln C between its two budgets about C' (beyond them by at most
half their distance, else it is not told). Both are means over the seeds that all three cells share, so noise of a seed is in
all of them; the interval is the jackknife's over seeds, Student's t in ln k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from redraft.scaling.laws.multiplier import Array, Estimate, student
from redraft.scaling.records import Point
from redraft.scaling.results import Factor, Pair

Seeds = Mapping[int, float]  # loss by seed, nats per token
BEYOND = 0.5  # of the distance of two budgets


def pairs(points: Sequence[Point]) -> Iterator[Pair]:
    """Arms of one family that share two seeds at a size and budget; the arm with the family's own name comes second."""
    cells: dict[tuple[str, float], dict[float, dict[str, dict[int, float]]]] = {}
    for p in points:
        if p.variant_of is not None and p.seed is not None:
            budgets = cells.setdefault((p.variant_of, p.params), {})
            budgets.setdefault(p.budget or p.flops, {}).setdefault(p.family, {})[p.seed] = p.loss
    by_budget = sorted((family, budget, params) for (family, params), budgets in cells.items() for budget in budgets)
    for family, budget, params in by_budget:
        budgets = cells[family, params]
        arms = budgets[budget]
        base = family if family in arms else min(arms)
        curve = {flops: there[base] for flops, there in budgets.items() if base in there}
        for arm in sorted(set(arms) - {base}):
            if len(shared(arms[arm], arms[base])) >= 2:
                yield _pair(arm, base, budget, params, arms[arm], curve)


def shared(*cells: Seeds) -> list[int]:
    """Seeds that all have, in order."""
    return sorted(set.intersection(*(set(cell) for cell in cells)))


def _pair(arm: str, base: str, budget: float, params: float, own: Seeds, curve: Mapping[float, Seeds]) -> Pair:
    seeds = tuple(shared(own, curve[budget]))
    losses, against = (tuple(cell[seed] for seed in seeds) for cell in (own, curve[budget]))
    gaps = np.subtract(losses, against)
    difference = student(float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(len(gaps))), len(gaps) - 1)
    return Pair(arm, base, budget, params, seeds, losses, against, difference, paired_factor(budget, own, curve))


def paired_factor(budget: float, own: Seeds, curve: Mapping[float, Seeds]) -> Factor | None:
    """How many times the compute of the other way, whose losses by budget are `curve`, an arm needs that has the losses `own`
    with `budget` FLOPs; None where no two budgets of it with three seeds in common are about that loss."""
    # from the segment that ends nearest to the budget to the farthest
    segments = sorted(pairwise(sorted(curve)), key=lambda ends: abs(math.log(ends[1] / budget)))
    found = []
    for low, high in segments:
        seeds = shared(own, curve[low], curve[high])
        if len(seeds) > 2:
            rows = np.array([[cell[seed] for seed in seeds] for cell in (own, curve[low], curve[high])])
            share = _share(rows.mean(1))
            if -BEYOND <= share <= 1 + BEYOND:
                found.append((not 0 <= share <= 1, math.log(budget / low), math.log(high / low), rows))
    if not found:
        return None
    beyond, start, width, rows = min(found, key=lambda one: one[0])  # within two budgets before beyond them
    told = _jackknife(rows, start, width)
    return None if told is None else Factor(told.exp(), beyond)


def _share(means: Array) -> float:
    """Of the way in ln C from the lower to the higher budget, where the loss is that of the first [3, ...]."""
    own, low, high = means
    return float((low - own) / (low - high)) if low > high else math.inf


def _jackknife(rows: Array, start: float, width: float) -> Estimate | None:
    """ln k of losses [3, S], leaving out one seed at a time; None where the curve falls by one seed's doing alone."""
    count = rows.shape[1]
    value = start - width * _share(rows.mean(1))
    without = (rows.sum(1, keepdims=True) - rows) / (count - 1)
    each = np.array([start - width * _share(means) for means in without.T])
    if not np.isfinite(each).all():
        return None
    error = math.sqrt((count - 1) / count * ((each - each.mean()) ** 2).sum())
    return student(value, error, count - 1)
