"""The same runs under other counting conventions, with every exponent and optimum fitted again.

An exponent belongs to its convention: identical runs give N* ~ C^.37 to C^.70 as N counts the embedding, the head, or
neither. Runs of one IsoFLOP budget spend different FLOPs under another convention, so its curves are bent: each loss is
first moved, at its size, along the fitted L(N, D) to the tokens that spend the budget's mean (geometric) under the new
convention, loss + L(N, D') - L(N, D). Where L(N, D) was not fitted, losses stay and the bend remains (`moved` is false).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from redraft.scaling.approaches import Approaches, fit_approaches
from redraft.scaling.laws.isoflop import GIVEN, TOO_FEW, Minimum, curves
from redraft.scaling.laws.multiplier import Array, Estimate, Multiplier, multiplier
from redraft.scaling.laws.parametric import Law, columns, fit_parametric
from redraft.scaling.records import Point

SAME = 0.005  # budgets whose FLOPs agree within this fraction need no moving


@dataclass(frozen=True)
class Recounted:
    """The laws of one family under one convention."""

    convention: str
    family: str
    moved: bool  # losses were moved to equal FLOPs, or were at equal FLOPs already
    size_exponent: Estimate | None
    token_exponent: Estimate | None
    loss_exponent: Estimate | None
    allocation: Estimate | None  # a of L(N, D), along C proportional to N D
    optimum: Minimum | None  # at the largest budget
    multiplier: Estimate | None  # against the reference, mean over budgets


def conventions(points: Sequence[Point]) -> list[str]:
    """The conventions under which every run is counted, by name."""
    return sorted(set.intersection(*(set(p.counts) for p in points))) if points else []


def recount(
    points: Sequence[Point], fitted: Mapping[str, Approaches], reference: str, seed: int, resamples: int
) -> tuple[Recounted, ...]:
    """One row for each convention and family, conventions by name; empty where there are fewer than two conventions.

    Points need budgets. The study's own convention, under which families are `fitted` already, is among the rows.
    """
    known = conventions(points)
    if len(known) < 2:
        return ()
    rows: list[Recounted] = []
    for convention in known:
        if all(p.convention == convention for p in points):
            rows += [_row(convention, f, True, fitted, reference) for f in fitted]
            continue
        moved = {f: _under(convention, [p for p in points if p.family == f]) for f in fitted}
        every = curves([p for own, _ in moved.values() for p in own])
        engines = {f: fit_approaches(own, every, seed, resamples) for f, (own, _) in moved.items()}
        rows += [_row(convention, f, moved[f][1], engines, reference) for f in fitted]
    return tuple(rows)


def _under(convention: str, own: list[Point]) -> tuple[list[Point], bool]:
    """The runs of a family, recounted, at equal FLOPs where that could be done."""
    flops = np.array([p.counts[convention].flops for p in own])
    target = _means(flops, [p.budget or p.flops for p in own])
    counted = [
        replace(p, params=p.counts[convention].params, flops=c, budget=c, convention=convention)
        for p, c in zip(own, target.tolist())
    ]
    if np.all(np.abs(np.log(flops / target)) < SAME):
        return counted, True
    law = fit_parametric(counted, [0], 2).law
    if law is None:
        return counted, False
    return [_moved(p, law, c / spent) for p, c, spent in zip(counted, target.tolist(), flops.tolist())], True


def _means(flops: Array, budgets: Sequence[float]) -> Array:
    """The geometric mean of the FLOPs of each run's budget."""
    groups, logs = np.unique(budgets, return_inverse=True)[1], np.log(flops)
    return np.exp(np.bincount(groups, logs) / np.bincount(groups))[groups]


def _moved(p: Point, law: Law, factor: float) -> Point:
    """The run with `factor` times its tokens, and the loss that L(N, D) then gives it."""
    n, d, loss = columns([p])
    shifted = loss + law.at(n, factor * d) - law.at(n, d)
    return replace(p, tokens=factor * p.tokens, loss=float(shifted[0]))


def _row(convention: str, family: str, moved: bool, engines: Mapping[str, Approaches], reference: str) -> Recounted:
    fitted = engines[family]
    laws = fitted.isoflop if fitted.isoflop.loss else fitted.envelope
    size, token, loss = (law.exponent if law else None for law in (laws.params, laws.tokens, laws.loss))
    known = [m for m in laws.minima if TOO_FEW not in m.flags or GIVEN in m.flags]
    k = _against(fitted, engines.get(reference), reference) if family != reference else None
    optimum = known[-1] if known else None
    allocation = fitted.parametric.allocation
    return Recounted(convention, family, moved, size, token, loss, allocation, optimum, k.mean if k else None)


def _against(fitted: Approaches, reference: Approaches | None, name: str) -> Multiplier | None:
    if fitted.best is None or reference is None or reference.best is None:
        return None
    return multiplier(fitted.best, reference.best, name)
