"""The speed-quality frontier: speed and quality of every setting, the Pareto set, and intervals by resampling.

`quality` is the log of generative perplexity: nats per token under an evaluator model. It is one half of the divergence
from real text, the samples' entropy is the other (arXiv:2604.02718). Repetitive text has good `quality`, so families are
compared at matched entropy (matched_entropy.py).

Intervals are bootstraps over samples. Row i of every resample is one draw of sample numbers for all settings: samples of one
number share their random numbers, so what they have in common cancels in a difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from redraft.errors import UserError
from redraft.scaling.laws.multiplier import Array, Estimate, interval
from redraft.scaling.records import json_lines

FRONTIER, SAMPLES = "frontier.jsonl", "samples.jsonl"
TEXT = "text"  # the family name under which held-out text itself is scored
RESAMPLES = 400

Key = tuple[str, int, float, float]  # of a setting: name of the run, steps, temperature, top-p


@dataclass(frozen=True)
class Speed:
    """One run sampled at one setting, in batches of one size. Times: `evaluation/generation/speed.py`."""

    family: str
    name: str  # of the run
    sampler: str
    steps: int
    temperature: float
    top_p: float
    batch: int
    samples: int
    length: int
    tokens_per_second: float  # of the whole batch
    latency_p50: float  # seconds of a batch
    latency_p95: float
    timed: int  # batches
    nfe: float  # passes through the network of a batch
    tokens_per_forward: float  # of one row
    flops_per_token: float  # forward FLOPs of a generated token, everything counted
    peak_bytes: float | None
    quality: float  # nats per token of the judge: lower is better
    quality_se: float
    nats_per_byte: float
    nats_per_byte_se: float
    entropy: float  # of a sample's own tokens, nats
    entropy_se: float
    distinct_1: float  # share of distinct n-grams
    distinct_2: float
    distinct_3: float
    distinct_4: float
    repetition_2: float  # share of n-grams that stood earlier in the sample
    repetition_3: float
    repetition_4: float
    mauve: float | None
    mauve_sd: float | None
    source_quality: float | None  # nats per token of the model that the training text is from
    source_quality_se: float | None
    device: str = "cpu"  # as of measurements that do not say so
    device_name: str = ""
    precision: str = "float32"
    compiled: bool = False

    @property
    def key(self) -> Key:
        return self.name, self.steps, self.temperature, self.top_p


@dataclass(frozen=True)
class Real:
    """Held-out text under the same measures: what samples should look like."""

    quality: float
    quality_se: float
    nats_per_byte: float
    entropy: float
    entropy_se: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    distinct_4: float
    repetition_2: float
    repetition_3: float
    repetition_4: float
    source_quality: float | None


@dataclass(frozen=True)
class Scored:
    """Every sample of a setting: nats in all under the judge, over its tokens; the entropy of its own tokens. [n] each."""

    nats: Array
    tokens: Array
    entropy: Array

    def draws(self) -> tuple[Array, Array]:
        """Quality and entropy [R] of resamples; settings with equally many samples resample the same numbers."""
        # In a resample without a single token quality is not a number, and `interval` leaves it out.
        picks = np.random.default_rng([0, len(self.nats)]).integers(0, len(self.nats), (RESAMPLES, len(self.nats)))
        with np.errstate(invalid="ignore"):
            return self.nats[picks].sum(1) / self.tokens[picks].sum(1), self.entropy[picks].mean(1)


@dataclass(frozen=True)
class ParetoPoint:
    """A setting, and whether it is on the Pareto front: nothing measured is both faster and better.

    `share`: of the resamples in which it is; None where the scores of single samples were not kept.
    """

    speed: Speed
    optimal: bool
    share: float | None = None


@dataclass(frozen=True)
class Frontier:
    """All measurements of a study, fastest first, and real text's if it was scored."""

    places: tuple[ParetoPoint, ...]
    real: Real | None
    judge: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] | None = None
    scores: Mapping[Key, Scored] = field(default_factory=dict)  # by setting; held-out text's under REAL

    @property
    def front(self) -> list[Speed]:
        """The Pareto-optimal settings, fastest first."""
        return [place.speed for place in self.places if place.optimal]

    def envelope(self) -> list[tuple[float, Estimate]]:
        """(tokens/s, the best quality at that speed or above) along the front, with the interval over resamples.

        The best of several noisy values is a little too good, in the estimate and in each resample alike.
        """
        known = [place.speed for place in self.places if place.speed.key in self.scores]
        draws = {s.key: self.scores[s.key].draws()[0] for s in known}
        out = []
        for s in self.front:
            fast = [draws[o.key] for o in known if o.tokens_per_second >= s.tokens_per_second]
            out.append((s.tokens_per_second, interval(s.quality, np.min(fast, 0) if fast else None)))
        return out


REAL: Key = (TEXT, 0, 1.0, 1.0)


def frontier(records: Sequence[Speed], scores: Mapping[Key, Scored] | None = None) -> list[ParetoPoint]:
    """Every setting, fastest first, marked where it is Pareto-optimal; of equals in both, all are."""
    ranked = sorted(records, key=lambda r: (-r.tokens_per_second, r.quality, r.family, r.steps, r.temperature, r.top_p))
    best = optimal(np.array([r.tokens_per_second for r in ranked]), np.array([[r.quality for r in ranked]]))[0]
    shares = _shares(ranked, scores or {})
    return [ParetoPoint(r, bool(on), share) for r, on, share in zip(ranked, best, shares)]


def optimal(rates: Array, quality: Array) -> Array:
    """Which of n settings are on the front, bool [R, n], for qualities [R, n] and rates [n]."""
    on = np.ones(quality.shape, bool)
    for i, rate in enumerate(rates):
        others, same = quality[:, rates > rate], quality[:, rates == rate]
        beaten = (others <= quality[:, i, None]).any(1) | (same < quality[:, i, None]).any(1)
        on[:, i] = ~beaten
    return on


def _shares(ranked: Sequence[Speed], scores: Mapping[Key, Scored]) -> list[float | None]:
    """Of the resamples, the share in which each setting is on the front."""
    if not ranked or any(r.key not in scores for r in ranked):
        return [None] * len(ranked)
    draws = {key: scores[key].draws()[0] for key in {r.key for r in ranked}}
    on = optimal(np.array([r.tokens_per_second for r in ranked]), np.stack([draws[r.key] for r in ranked], 1))
    return [float(share) for share in on.mean(0)]


def load_frontier(study: str | Path, file: str = FRONTIER) -> Frontier | None:
    """The frontier of a study directory, or of another `file` of the same lines in it; None where there is no such file, or
    no measurement in it yet.

    Raises `UserError`, naming the line, for a measurement that lacks a field or holds a value that is no number, and where
    two judges have measured.
    """
    path = Path(study) / file
    if not path.exists():
        return None
    rows = list(json_lines(path))
    speeds = [_record(Speed, where, row) for where, row in rows if row.get("family") != TEXT]
    real = [_record(Real, where, row) for where, row in rows if row.get("family") == TEXT]
    if not speeds:
        return None
    scores, (_, first) = _scores(Path(study)), rows[0]
    for where, row in rows:
        if row.get("judge") != first.get("judge"):
            raise UserError(f"{where} has another judge than the first: remove {FRONTIER} and measure again.")
    places = tuple(frontier(speeds, scores))
    return Frontier(places, real[-1] if real else None, first.get("judge") or {}, first.get("source"), scores)


def _scores(study: Path) -> dict[Key, Scored]:
    """What samples.jsonl says of single samples, by setting; the last line of a setting counts."""
    path, scores = study / SAMPLES, dict[Key, Scored]()
    for where, row in json_lines(path) if path.exists() else ():
        if "nats" in row:
            try:
                key = (str(row["name"]), int(row["steps"]), float(row["temperature"]), float(row["top_p"]))
                arrays = [np.array(row[part], np.float64) for part in ("nats", "tokens", "entropy")]
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{where} does not hold the scores of samples: {error!r}.") from None
            scores[key] = Scored(*arrays)
    return scores


def _record(kind: type[Any], where: str, row: dict[str, Any]) -> Any:
    """The row as a `kind`, every field of which it must have that has no default."""
    missing = [f.name for f in fields(kind) if f.name not in row and f.default is MISSING]
    if missing:
        raise UserError(
            f"{where} lacks {', '.join(missing)}: another version wrote it; remove {FRONTIER} and {SAMPLES}, measure again."
        )
    values = {f.name: _value(where, f.name, str(f.type), row[f.name]) for f in fields(kind) if f.name in row}
    if kind is Speed and values["tokens_per_second"] <= 0:
        raise UserError(f"{where}: tokens_per_second is {values['tokens_per_second']:g}; it must be above 0.")
    return kind(**values)


def _value(where: str, name: str, kind: str, value: Any) -> Any:
    if kind in ("str", "bool"):
        return {"str": str, "bool": bool}[kind](value)
    if value is None and kind.endswith("None"):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: {name} is {value!r}, not a number.")
    return value
