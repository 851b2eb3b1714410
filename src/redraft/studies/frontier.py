"""The speed-quality frontier: what samples cost, how good they are, and which settings nothing else beats.

Quality, nats per token under a judge, is half of the divergence from real text; the entropy of the samples is the other
(arXiv:2604.02718). Quality bought with dull text looks good alone, so the two are read side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.studies.records import json_lines

FRONTIER, SAMPLES = "frontier.jsonl", "samples.jsonl"
TEXT = "text"  # the family name under which held-out text itself is scored


@dataclass(frozen=True)
class Speed:
    """One family sampled at one setting."""

    family: str
    name: str  # of the run
    sampler: str
    steps: int
    temperature: float
    tokens_per_second: float  # of the whole batch
    nfe: int  # passes through the network
    quality: float  # nats per token under the judge: lower is better
    quality_se: float
    entropy: float  # of a sample's own tokens, nats
    entropy_se: float
    distinct_2: float  # share of distinct bigrams
    samples: int
    batch: int


@dataclass(frozen=True)
class Real:
    """Held-out text under the same measures: what samples should look like."""

    quality: float
    quality_se: float
    entropy: float
    entropy_se: float
    distinct_2: float


@dataclass(frozen=True)
class Place:
    """A setting, and whether it is on the Pareto front: nothing measured is both faster and better."""

    speed: Speed
    optimal: bool


@dataclass(frozen=True)
class Frontier:
    """All measurements of a study, fastest first, and real text's if it was scored."""

    places: tuple[Place, ...]
    real: Real | None

    @property
    def front(self) -> list[Speed]:
        """The Pareto-optimal settings, fastest first."""
        return [place.speed for place in self.places if place.optimal]


def frontier(records: Sequence[Speed]) -> list[Place]:
    """Every setting, fastest first, marked where it is Pareto-optimal; of equals in both, all are."""
    ranked = sorted(records, key=lambda r: (-r.tokens_per_second, r.quality, r.family, r.steps, r.temperature))
    return [Place(r, not any(_beats(other, r) for other in ranked)) for r in ranked]


def _beats(a: Speed, b: Speed) -> bool:
    at_least = a.tokens_per_second >= b.tokens_per_second and a.quality <= b.quality
    return at_least and (a.tokens_per_second > b.tokens_per_second or a.quality < b.quality)


def load_frontier(study: str | Path) -> Frontier | None:
    """The frontier of a study directory; None where it has no `frontier.jsonl`, or no measurement in it yet.

    Raises `UserError`, naming the line, for a measurement that lacks a field or holds a value that is no number.
    """
    path = Path(study) / FRONTIER
    if not path.exists():
        return None
    rows = list(json_lines(path))
    speeds = [_record(Speed, where, row) for where, row in rows if row.get("family") != TEXT]
    real = [_record(Real, where, row) for where, row in rows if row.get("family") == TEXT]
    return Frontier(tuple(frontier(speeds)), real[-1] if real else None) if speeds else None


def _record(kind: type[Any], where: str, row: dict[str, Any]) -> Any:
    """The row as a `kind`, every field of which it must have."""
    missing = [f.name for f in fields(kind) if f.name not in row]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}.")
    values = {f.name: _value(where, f.name, str(f.type), row[f.name]) for f in fields(kind)}
    if kind is Speed and values["tokens_per_second"] <= 0:
        raise UserError(f"{where}: tokens_per_second is {values['tokens_per_second']:g}; it must be above 0.")
    return kind(**values)


def _value(where: str, name: str, kind: str, value: Any) -> Any:
    if kind == "str":
        return str(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: {name} is {value!r}, not a number.")
    return value
