"""The Pareto front, and reading measurements."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from redraft.errors import UserError
from redraft.studies.frontier import FRONTIER, Speed, frontier, load_frontier


def speed(rate: float, quality: float, steps: int = 8) -> Speed:
    return Speed("mdlm", "run", "ancestral", steps, 1.0, rate, steps, quality, 0.01, 3.0, 0.01, 0.4, 32, 32)


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


def test_along_the_front_slower_is_better(study: Path) -> None:
    measured = load_frontier(study)
    assert measured is not None
    rates, quality = ([getattr(s, f) for s in measured.front] for f in ("tokens_per_second", "quality"))
    assert rates == sorted(rates, reverse=True) and quality == sorted(quality, reverse=True)


def test_held_out_text_is_a_reference_and_not_a_setting(study: Path) -> None:
    measured = load_frontier(study)
    assert measured and measured.real and measured.real.entropy == 2.95
    assert len(measured.places) == 19 and all(place.speed.family != "text" for place in measured.places)


def test_no_file_is_no_frontier(tmp_path: Path) -> None:
    assert load_frontier(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quality": None}, "line 1: quality is None, not a number"),
        ({"quality": float("nan")}, "line 1: quality is nan"),
        ({"tokens_per_second": 0}, "must be above 0"),
        ({"nfe": ...}, "line 1 lacks nfe"),
    ],
)
def test_a_bad_measurement_is_one_clear_line(tmp_path: Path, change: dict[str, object], said: str) -> None:
    row = {**vars(speed(10, 3)), **change}
    (tmp_path / FRONTIER).write_text(json.dumps({k: v for k, v in row.items() if v is not ...}), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load_frontier(tmp_path)
