"""Families compared at matched entropy, which low-entropy (repetitive) text cannot win.

A family at one number of steps and one batch is a curve of (entropy, quality) as its temperature, or its top-p, is swept.
Where two neighbours on the curve have the entropy h between them, quality and tokens/s are interpolated linearly in h.
Nothing is extrapolated: a curve that does not reach h is said to miss it. Intervals are those of the bootstrap over samples
(pareto.py); if h is the entropy of held-out text, it is resampled too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from operator import attrgetter

import numpy as np

from redraft.frontier.extend import why_not
from redraft.frontier.pareto import REAL, RESAMPLES, Frontier, Key, Scored, Speed
from redraft.scaling.laws.multiplier import Array, Estimate, interval

Curve = tuple[str, str, int, int]  # family, run, steps, batch
KNOBS = ("temperature", "top_p")


@dataclass(frozen=True)
class Match:
    """A family at one number of steps and one batch, at the common entropy."""

    family: str
    name: str
    steps: int
    batch: int
    knob: str  # what was swept: 'temperature' or 'top_p'
    at: float  # its value there
    tokens_per_second: float
    quality: Estimate  # nats per token of the judge
    draws: Array = field(repr=False, compare=False)  # [R] of quality


@dataclass(frozen=True)
class Miss:
    """A curve that does not reach the entropy, and what it spans."""

    family: str
    name: str
    steps: int
    batch: int
    low: float
    high: float
    settings: int
    why: str  # it does not, in words


@dataclass(frozen=True)
class Lead:
    """At `rate` tokens/s or more, `best` has the lowest quality; `rivals`: the other families' best there, nearest first."""

    rate: float
    best: Match
    rivals: tuple[tuple[Match, Estimate], ...]  # and by how much they are worse


@dataclass(frozen=True)
class Matching:
    """The comparison at one entropy (nats), fastest first."""

    entropy: Estimate
    stated: bool  # else it is held-out text's
    matches: tuple[Match, ...]
    misses: tuple[Miss, ...]

    def leads(self) -> list[Lead]:
        """Who is best from which speed on, fastest first: for each winner the highest speed at which it beats somebody."""
        rates = sorted({m.tokens_per_second for m in self.matches}, reverse=True)
        groups = groupby(map(self._lead, rates), key=lambda lead: lead.best.family)
        runs = [list(group) for _, group in groups]
        return [next((lead for lead in run if lead.rivals), run[0]) for run in runs]

    def _lead(self, rate: float) -> Lead:
        best: dict[str, Match] = {}
        for m in sorted(self.matches, key=lambda m: m.quality.value):
            if m.tokens_per_second >= rate:
                best.setdefault(m.family, m)
        first, *others = best.values()
        gaps = [(m, interval(m.quality.value - first.quality.value, m.draws - first.draws)) for m in others]
        return Lead(rate, first, tuple(gaps))


def match(speeds: Frontier, entropy: float | None = None) -> Matching | None:
    """All curves at `entropy` nats, or at that of held-out text; None where there is no such entropy or no scores."""
    if not speeds.scores or (entropy is None and (speeds.real is None or REAL not in speeds.scores)):
        return None
    if entropy is not None:
        level, levels = Estimate(entropy), np.full(RESAMPLES, entropy)
    else:
        assert speeds.real is not None
        levels = speeds.scores[REAL].draws()[1]
        level = interval(speeds.real.entropy, levels)
    ranked = sorted((p.speed for p in speeds.places if p.speed.key in speeds.scores), key=_curve)
    matches, misses = [], []
    for curve, group in groupby(ranked, key=_curve):
        own = list(group)
        found = [_at(curve, path, knob, level.value, levels, speeds.scores) for knob, path in _paths(own)]
        best = min((m for m in found if m), key=lambda m: m.quality.value, default=None)
        if best:
            matches.append(best)
        else:
            misses.append(_miss(curve, own, level.value))
    matches.sort(key=lambda m: -m.tokens_per_second)
    return Matching(level, entropy is not None, tuple(matches), tuple(misses))


def _miss(curve: Curve, own: Sequence[Speed], level: float) -> Miss:
    spanned, heat = [s.entropy for s in own], [s.temperature for s in own]
    why = why_not(min(heat), max(heat), level < min(spanned), len(own))
    return Miss(*curve, min(spanned), max(spanned), len(own), why)


def _curve(s: Speed) -> Curve:
    return s.family, s.name, s.steps, s.batch


def _paths(own: Sequence[Speed]) -> Iterator[tuple[str, list[Speed]]]:
    """Sweeps of one knob, the other held, in the order of the entropy."""
    for knob, held in (KNOBS, KNOBS[::-1]):
        by_held = attrgetter(held)
        for _, group in groupby(sorted(own, key=by_held), key=by_held):
            path = sorted(group, key=lambda s: s.entropy)
            if len(path) > 1:
                yield knob, path


def _at(
    curve: Curve, path: Sequence[Speed], knob: str, level: float, levels: Array, scores: Mapping[Key, Scored]
) -> Match | None:
    """Between the neighbours that bracket the level; in each resample on the straight line through the same two."""
    for low, high in pairwise(path):
        if low.entropy <= level <= high.entropy and low.entropy < high.entropy:
            (q0, h0), (q1, h1) = (scores[s.key].draws() for s in (low, high))
            with np.errstate(divide="ignore", invalid="ignore"):
                draws = q0 + (levels - h0) / (h1 - h0) * (q1 - q0)
            ends = np.array([[getattr(s, knob), np.log(s.tokens_per_second), s.quality] for s in (low, high)])
            share = (level - low.entropy) / (high.entropy - low.entropy)
            at, rate, quality = (1 - share) * ends[0] + share * ends[1]
            return Match(*curve, knob, float(at), float(np.exp(rate)), interval(float(quality), draws), draws)
    return None
