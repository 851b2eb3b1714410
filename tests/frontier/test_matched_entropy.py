"""The comparison at one entropy: exact where quality is straight in entropy, silent where it would have to extrapolate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from redraft.frontier.matched_entropy import match
from redraft.frontier.pareto import REAL, Frontier, ParetoPoint, Scored, load_frontier
from redraft.report.conclusions import matched_lines
from tests.frontier.planted_speeds import BASE, RATE, REAL_ENTROPY, matched_quality, steps_of


@pytest.fixture(scope="module")
def speeds(study: Path) -> Frontier:
    found = load_frontier(study)
    assert found
    return found


@pytest.mark.parametrize("entropy", [None, 2.93, 2.97])
def test_quality_at_the_entropy_is_the_planted_one(speeds: Frontier, entropy: float | None) -> None:
    found = match(speeds, entropy)
    assert found and found.stated is (entropy is not None)
    assert {(m.family, m.steps) for m in found.matches} == {(f, s) for f in BASE for s in steps_of(f)}
    for m in found.matches:
        planted = matched_quality(m.family, m.steps, entropy or REAL_ENTROPY)
        assert m.quality.value == pytest.approx(planted, abs=1e-9)
        assert m.quality.low is not None and m.quality.high is not None and m.quality.low < planted < m.quality.high
        rate = RATE[m.family] * (1 if m.family == "ar" else 8 / m.steps) * (1 if m.batch > 1 else 0.1)
        assert m.tokens_per_second == pytest.approx(rate)


def test_an_entropy_that_a_curve_does_not_reach_is_a_miss_and_never_extrapolated(speeds: Frontier) -> None:
    """Eso-LM's curves begin 0.15 nats above the others."""
    found = match(speeds, 2.79)
    assert found is not None
    assert {miss.family for miss in found.misses} >= {"esolm"} and {m.family for m in found.matches} >= {"ar"}
    assert all(miss.low > 2.79 or miss.high < 2.79 for miss in found.misses)
    nothing = match(speeds, 9.0)
    assert nothing and not nothing.matches and nothing.leads() == []


def test_one_setting_is_no_curve(speeds: Frontier) -> None:
    """Even one whose entropy is that of the text to the last digit."""
    plain = replace(speeds.places[0].speed, temperature=1.0, entropy=REAL_ENTROPY)
    scores = {plain.key: speeds.scores[speeds.places[0].speed.key], REAL: speeds.scores[REAL]}
    found = match(Frontier((ParetoPoint(plain, True),), speeds.real, {}, None, scores))
    assert found and not found.matches and found.misses[0].settings == 1


def test_the_better_of_the_two_knobs_is_taken(speeds: Frontier) -> None:
    """Top-p swept at temperature 0.99, 0.2 nats better than the temperature sweep."""
    own = [p.speed for p in speeds.places if p.speed.family == "duo" and p.speed.steps == 16 and p.speed.batch == 32]
    narrow = [replace(s, temperature=0.99, top_p=s.temperature / 2, quality=s.quality - 0.2) for s in own]
    scores = dict(speeds.scores)
    for s, old in zip(narrow, own, strict=True):
        was = scores[old.key]
        scores[s.key] = Scored(was.nats - 0.2 * was.tokens, was.tokens, was.entropy)
    found = match(Frontier(tuple(ParetoPoint(s, True) for s in own + narrow), speeds.real, {}, None, scores))
    assert found and len(found.matches) == 1
    (m,) = found.matches
    assert m.knob == "top_p" and m.quality.value == pytest.approx(matched_quality("duo", 16) - 0.2)


def test_without_scores_or_a_level_there_is_no_comparison(speeds: Frontier) -> None:
    assert match(replace(speeds, scores={})) is None
    assert match(replace(speeds, real=None)) is None
    assert match(replace(speeds, real=None), 2.9) is not None


def test_who_leads_from_which_speed_on_is_what_was_planted(speeds: Frontier) -> None:
    found = match(speeds)
    assert found is not None
    for lead in found.leads():
        fast = {m.family: [] for m in found.matches if m.tokens_per_second >= lead.rate}  # type: ignore[var-annotated]
        for m in found.matches:
            if m.tokens_per_second >= lead.rate:
                fast[m.family].append(matched_quality(m.family, m.steps))
        best = {family: min(values) for family, values in fast.items()}
        assert min(best, key=best.__getitem__) == lead.best.family
        gaps = {m.family: gap.value for m, gap in lead.rivals}
        assert gaps == {f: pytest.approx(q - best[lead.best.family]) for f, q in best.items() if f != lead.best.family}
    assert [lead.best.family for lead in found.leads()][-1] == "ar"


def test_the_interval_is_as_wide_as_the_noise(speeds: Frontier) -> None:
    """AR at h = 2.951 all but meets a swept setting, so there q(h) = q + 0.8 (h - h_sample): the noise of a sample is
    e - 0.8 e', whose standard error is known exactly. The 95 % width of 400 resamples is within 5 sigma, each about 5 %."""
    found = match(speeds, 2.951)
    assert found is not None
    m = next(m for m in found.matches if m.family == "ar" and m.batch == 32)
    scored = speeds.scores[("ar-75k", 64, 1.0, 1.0)]
    noise = scored.nats / scored.tokens - 0.8 * scored.entropy
    width = 2 * 1.96 * float(noise.std()) / len(noise) ** 0.5
    assert m.quality.low is not None and m.quality.high is not None
    assert m.quality.high - m.quality.low == pytest.approx(width, rel=0.25)


def test_the_sentences_name_speed_entropy_winner_and_gap(speeds: Frontier) -> None:
    found = match(speeds)
    assert found is not None
    said = list(matched_lines(found))
    assert said[0].startswith(
        "At 350k tokens/s or more and entropy 2.95 (that of held-out text), MDLM in 16 steps is best"
    )
    assert "AR in 64 steps is best: 2.27" in said[2] and "against Duo in 16 steps, 2.49" in said[2]
    assert np.isfinite([lead.rate for lead in found.leads()]).all()


def test_a_curve_that_ends_at_greedy_says_so(speeds: Frontier) -> None:
    """Its coldest setting was greedy: no sweep will reach below."""
    cold = lambda s: replace(s, temperature=0.0) if s.temperature == 0.8 else s
    places = tuple(replace(place, speed=cold(place.speed)) for place in speeds.places)
    scores = {(n, k, 0.0 if t == 0.8 else t, p): value for (n, k, t, p), value in speeds.scores.items()}
    found = match(replace(speeds, places=places, scores=scores), 2.79)
    assert found and {miss.why for miss in found.misses} == {"greedy reached, nothing is colder"}
    assert any("greedy reached" in line for line in matched_lines(found))


def test_what_misses_is_said(speeds: Frontier) -> None:
    found = match(speeds, 2.79)
    assert found is not None
    assert any("do not reach that entropy" in line and "Eso-LM" in line for line in matched_lines(found))
