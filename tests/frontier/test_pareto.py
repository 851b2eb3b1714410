"""The Pareto front with its certainty, and reading measurements."""

from __future__ import annotations

import json
import random
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from redraft.errors import UserError
from redraft.frontier.pareto import FRONTIER, SAMPLES, Frontier, Scored, Speed, frontier, load_frontier
from tests.frontier.planted_speeds import REAL_ENTROPY, rows_and_samples


def speed(rate: float, quality: float, steps: int = 8) -> Speed:
    row = {f.name: 1 for f in fields(Speed)} | {"family": "mdlm", "name": "run", "sampler": "ancestral"}
    return Speed(**row | {"steps": steps, "tokens_per_second": rate, "quality": quality})


def scored(values: list[float]) -> Scored:
    """One token a sample."""
    return Scored(np.array(values), np.ones(len(values)), np.ones(len(values)))


def test_a_setting_is_optimal_where_no_other_is_faster_and_better() -> None:
    rng = random.Random(0)
    speeds = [speed(rng.randint(1, 20), rng.randint(1, 20), i) for i in range(60)]
    for place in frontier(speeds):
        s = place.speed
        beaten = any(
            o.tokens_per_second >= s.tokens_per_second and o.quality <= s.quality
            and (o.tokens_per_second, o.quality) != (s.tokens_per_second, s.quality) for o in speeds
        )  # fmt: skip
        assert place.optimal is not beaten


def test_the_share_on_the_front_says_how_sure_it_is() -> None:
    """Sure where all samples are better by a nat; a coin toss, about half, between two settings of equal quality whose
    samples are independent: 400 resamples are within 5 sigma, 0.13, of the bootstrap's own probability."""
    rng = np.random.default_rng(0)
    near, far = rng.standard_normal((2, 200))
    near, far = near - near.mean() + 3, far - far.mean() + 3
    for other, low, high in ((scored((near + 1).tolist()), 1.0, 1.0), (scored(far.tolist()), 0.37, 0.63)):
        slow, fast = speed(1, 3.0, 64), speed(2, float(other.nats.mean()) + 1e-9, 8)
        places = frontier([slow, fast], {slow.key: scored(near.tolist()), fast.key: other})
        share = next(p.share for p in places if p.speed is slow)
        assert share is not None and low <= share <= high


def test_samples_of_one_number_are_resampled_together() -> None:
    """A setting that is better by the same amount in every sample is better in every resample."""
    values = np.random.default_rng(0).standard_normal(50)
    one, other = (scored((values + shift).tolist()).draws()[0] for shift in (0.0, 1e-6))
    assert np.all(one < other)


def test_quality_of_a_resample_is_nats_over_tokens() -> None:
    """Texts of different lengths: the ratio of sums, not the mean of ratios."""
    of = Scored(np.array([2.0, 30.0]), np.array([1.0, 10.0]), np.array([1.0, 1.0]))
    assert set(np.round(of.draws()[0], 9)) == {2.0, 3.0, round(32 / 11, 9)}


def test_along_the_front_slower_is_better(study: Path) -> None:
    measured = load_frontier(study)
    assert measured is not None
    rates, quality = ([getattr(s, f) for s in measured.front] for f in ("tokens_per_second", "quality"))
    assert rates == sorted(rates, reverse=True) and quality == sorted(quality, reverse=True)


def test_the_envelope_has_the_front_within_its_interval(study: Path) -> None:
    measured = load_frontier(study)
    assert measured is not None
    for (rate, best), s in zip(measured.envelope(), measured.front, strict=True):
        assert rate == s.tokens_per_second and best.value == s.quality
        assert best.low is not None and best.high is not None and best.low < s.quality < best.high
        assert best.high - best.low < 2 * 3 * s.quality_se


def test_held_out_text_is_a_reference_and_not_a_setting(study: Path) -> None:
    measured = load_frontier(study)
    assert measured and measured.real and measured.real.entropy == REAL_ENTROPY
    assert len(measured.places) == len(rows_and_samples()[0]) - 1
    assert all(place.speed.family != "text" for place in measured.places)
    assert measured.judge["name"] == "judge-150k"


def test_no_file_is_no_frontier(tmp_path: Path) -> None:
    assert load_frontier(tmp_path) is None


def test_without_scores_of_samples_nothing_is_claimed_of_the_front(tmp_path: Path) -> None:
    (tmp_path / FRONTIER).write_text(json.dumps(vars(speed(10, 3))), encoding="utf-8")
    measured = load_frontier(tmp_path)
    assert isinstance(measured, Frontier) and measured.places[0].share is None
    assert measured.envelope()[0][1].low is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quality": None}, "line 1: quality is None, not a number"),
        ({"quality": float("nan")}, "line 1: quality is nan"),
        ({"tokens_per_second": 0}, "must be above 0"),
        ({"nfe": ...}, "line 1 lacks nfe: another version wrote it; remove frontier.jsonl and samples.jsonl"),
    ],
)
def test_a_bad_measurement_is_one_clear_line(tmp_path: Path, change: dict[str, object], said: str) -> None:
    row = {**vars(speed(10, 3)), **change}
    (tmp_path / FRONTIER).write_text(json.dumps({k: v for k, v in row.items() if v is not ...}), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load_frontier(tmp_path)


def test_what_a_setting_need_not_have_may_be_null(tmp_path: Path) -> None:
    row = {**vars(speed(10, 3)), "mauve": None, "source_quality": None, "peak_bytes": None}
    (tmp_path / FRONTIER).write_text(json.dumps(row), encoding="utf-8")
    measured = load_frontier(tmp_path)
    assert measured and measured.places[0].speed.mauve is None


def test_two_judges_are_refused(tmp_path: Path) -> None:
    lines = [json.dumps({**vars(speed(10, 3)), "judge": {"name": name}}) for name in ("one", "other")]
    (tmp_path / FRONTIER).write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="line 2 has another judge"):
        load_frontier(tmp_path)


def test_broken_scores_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / FRONTIER).write_text(json.dumps(vars(speed(10, 3))), encoding="utf-8")
    (tmp_path / SAMPLES).write_text(json.dumps({"name": "run", "nats": [1], "steps": 8}), encoding="utf-8")
    with pytest.raises(UserError, match="line 1 does not hold the scores"):
        load_frontier(tmp_path)
