"""Two ways of training, paired by seed: the difference, and the compute that it is worth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from redraft.scaling.laws.multiplier import student
from redraft.scaling.pairs import BEYOND, paired_factor, pairs
from redraft.scaling.records import Point
from redraft.scaling.summary import pair_sentence

LOW, HIGH, SLOPE = 8e10, 1.1e11, 0.3
SEEDS = range(8)
NOISE = np.random.default_rng(0).normal(0, 0.03, (3, len(SEEDS)))


def loss(flops: float, noise: float = 0.0) -> float:
    """Linear in ln C."""
    return 3.0 - SLOPE * math.log(flops / LOW) + noise


def cell(flops: float, row: int | None = None, offset: float = 0.0) -> dict[int, float]:
    return {seed: loss(flops, 0.0 if row is None else NOISE[row, seed]) + offset for seed in SEEDS}


@pytest.mark.parametrize("factor", [1.02, 1.2, 1.35])
def test_the_planted_factor_comes_back(factor: float) -> None:
    own = {seed: loss(HIGH / factor) for seed in SEEDS}
    found = paired_factor(HIGH, own, {LOW: cell(LOW), HIGH: cell(HIGH)})
    assert found is not None
    assert not found.extrapolated
    told = found.value
    assert told.value == pytest.approx(factor) and told.low == pytest.approx(factor) == told.high


def test_noise_that_a_seed_shares_does_not_widen_the_interval() -> None:
    shift = NOISE[0]
    own, curve = ({seed: value + shift[seed] for seed, value in one.items()} for one in (cell(HIGH / 1.2), cell(HIGH)))
    lower = {seed: value + shift[seed] for seed, value in cell(LOW).items()}
    found = paired_factor(HIGH, own, {LOW: lower, HIGH: curve})
    assert found is not None
    assert found.value.value == pytest.approx(1.2) and found.value.low == pytest.approx(1.2)


def test_with_a_known_slope_the_interval_is_students() -> None:
    """Where both budgets of a seed share their noise, ln k is the paired gap over the slope, and so is its interval."""
    own, high = cell(HIGH / 1.2, 0), cell(HIGH, 1)
    low = {seed: value + SLOPE * math.log(HIGH / LOW) for seed, value in high.items()}
    found = paired_factor(HIGH, own, {LOW: low, HIGH: high})
    gaps = np.array([own[seed] - high[seed] for seed in SEEDS]) / SLOPE
    wanted = student(gaps.mean(), gaps.std(ddof=1) / math.sqrt(len(gaps)), len(gaps) - 1).exp()
    assert found is not None
    told = found.value
    assert [told.value, told.low, told.high] == pytest.approx([wanted.value, wanted.low, wanted.high])


def test_two_budgets_about_the_loss_come_before_any_beyond_it() -> None:
    """Of a curve that bends, the part that the loss lies in tells the factor."""
    bent = {LOW: cell(LOW), HIGH: cell(HIGH), 3 * HIGH: cell(HIGH, offset=-0.01)}
    own = {seed: loss(HIGH / 1.2) for seed in SEEDS}
    found = paired_factor(HIGH, own, bent)
    assert found is not None and found.value.value == pytest.approx(1.2) and not found.extrapolated


@pytest.mark.parametrize(("off", "told"), [(BEYOND - 0.01, True), (BEYOND + 0.01, False)])
def test_nothing_is_carried_far_beyond_the_budgets(off: float, told: bool) -> None:
    width = SLOPE * math.log(HIGH / LOW)
    for offset in (-off * width, width + off * width):  # better than at the higher budget, worse than at the lower
        found = paired_factor(HIGH, cell(HIGH, offset=offset), {LOW: cell(LOW), HIGH: cell(HIGH)})
        assert (found is not None and found.extrapolated) is told
    if told:
        better = paired_factor(HIGH, cell(HIGH, offset=-off * width), {LOW: cell(LOW), HIGH: cell(HIGH)})
        assert better is not None and better.value.value < 1


def test_a_curve_that_does_not_fall_or_two_seeds_tell_no_factor() -> None:
    own = cell(HIGH, offset=0.02)
    assert paired_factor(HIGH, own, {LOW: cell(HIGH), HIGH: cell(HIGH)}) is None
    few = {seed: own[seed] for seed in (0, 1)}
    assert paired_factor(HIGH, few, {LOW: cell(LOW), HIGH: cell(HIGH)}) is None
    assert paired_factor(HIGH, own, {HIGH: cell(HIGH)}) is None


def test_a_curve_that_falls_by_one_seed_alone_tells_no_factor() -> None:
    """Without that seed it does not fall, so no interval is known."""
    high = cell(HIGH)
    low = {seed: value + (0.5 if seed == 0 else 0.0) for seed, value in high.items()}
    own = {seed: value + 0.01 for seed, value in high.items()}
    assert paired_factor(HIGH, own, {LOW: low, HIGH: high}) is None


def test_arms_of_a_table_are_paired_at_every_budget_and_size() -> None:
    def runs(arm: str, budget: float, params: float, worse: float = 0.0) -> list[Point]:
        return [
            Point(
                family=arm,
                params=params,
                tokens=budget / (6 * params),
                flops=budget,
                loss=loss(budget) + worse,
                budget=budget,
                seed=seed,
                variant_of="mdlm",
            )
            for seed in SEEDS
        ]

    points = [p for params in (1e4, 3e4) for budget in (LOW, HIGH) for p in runs("mdlm", budget, params)]
    points += runs("mdlm-nelbo", HIGH, 1e4, 0.04) + runs("mdlm-nelbo", LOW, 3e4, 0.01)
    found = list(pairs(points))
    assert [(pair.budget, pair.params, pair.difference.value) for pair in found] == [
        (LOW, 3e4, pytest.approx(0.01)),
        (HIGH, 1e4, pytest.approx(0.04)),
    ]
    for pair in found:
        assert pair.factor and pair.factor.value.value == pytest.approx(math.exp(pair.difference.value / SLOPE))
    assert "; 1.14 (1.14 to 1.14) times the compute of MDLM at 110 GFLOPs." in pair_sentence(found[1])
