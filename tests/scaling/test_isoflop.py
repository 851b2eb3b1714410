"""IsoFLOP fits: what is planted is found, what cannot be known is flagged, and intervals cover what they claim."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from redraft.scaling.fit import fit
from redraft.scaling.laws.isoflop import (
    NOT_BRACKETED,
    NOT_CONVEX,
    OFF_CENTRE,
    TOO_FEW,
    curves,
    estimate_noise,
    fit_isoflop,
)
from redraft.scaling.laws.multiplier import Estimate, Multiplier, multiplier
from redraft.scaling.records import Point
from redraft.scaling.schema import to_json
from tests.planted import BUDGETS, WORLD, multiplier_of, planted_points

quick = partial(fit, resamples=40, checks=False)  # for what needs no check of the fit


def test_noise_free_minima_and_exponents_are_recovered() -> None:
    fits = quick(planted_points(sizes=5, shift=0.2))
    for name, family in fits.families.items():
        world, laws = WORLD[name], family.isoflop
        for m in laws.minima:
            assert m.params.value == pytest.approx(world.best(m.flops), rel=1e-6)
            assert m.loss.value == pytest.approx(world.A * m.flops**-world.g, rel=1e-9)
            assert m.flags == ()
        assert laws.params and laws.tokens and laws.loss
        assert laws.params.exponent.value == pytest.approx(world.a, abs=1e-6)
        assert laws.tokens.exponent.value == pytest.approx(1 - world.a, abs=1e-6)
        assert laws.loss.exponent.value == pytest.approx(-world.g, abs=1e-8)


def test_three_sizes_are_enough_for_a_minimum() -> None:
    fits = quick(planted_points(sizes=3))
    assert fits.families["ar"].isoflop.minima[0].params.value == pytest.approx(WORLD["ar"].best(BUDGETS[0]), rel=1e-6)


def test_order_of_rows_changes_nothing() -> None:
    points = planted_points(sizes=4, seeds=2, sd=0.01)
    shuffled = random.Random(3).sample(points, len(points))
    assert json.dumps(to_json(fit(points, resamples=40))) == json.dumps(to_json(fit(shuffled, resamples=40)))


def test_units_of_size_shift_the_scale_and_not_the_exponent() -> None:
    points = planted_points(sd=0.005)
    millions = [replace(p, params=p.params / 1e6) for p in points]
    a, b = (quick(ps).families["ar"].isoflop.params for ps in (points, millions))
    assert a and b
    assert b.exponent.value == pytest.approx(a.exponent.value, rel=1e-9)
    assert b.exponent.high == pytest.approx(a.exponent.high, rel=1e-6)
    assert b.scale.value == pytest.approx(a.scale.value / 1e6, rel=1e-9)


def test_seeds_of_a_cell_are_averaged() -> None:
    points = planted_points(sizes=3, seeds=2)
    apart = [replace(p, loss=p.loss + (0.01 if p.seed else -0.01)) for p in points]
    a, b = (quick(ps).families["ar"].parabolas.minima[0] for ps in (points, apart))
    assert b.params.value == pytest.approx(a.params.value, rel=1e-9)
    assert quick(apart).families["ar"].isoflop.noise.sd == pytest.approx(0.01 * 2**0.5)


@pytest.mark.parametrize(
    ("shift", "sizes", "flag"), [(2.0, 5, NOT_BRACKETED), (0.9, 5, OFF_CENTRE), (0.0, 2, TOO_FEW), (0.2, 5, None)]
)
def test_a_minimum_that_cannot_be_trusted_is_flagged(shift: float, sizes: int, flag: str | None) -> None:
    fits = quick(planted_points(shift=shift, sizes=sizes))
    for m in fits.families["ar"].isoflop.minima:
        assert m.flags == ((flag,) if flag else ())
    assert bool(fits.warnings) == (flag is not None)


def test_a_minimum_that_is_not_bracketed_is_the_lowest_run() -> None:
    points = planted_points(shift=2.0)
    m = quick(points).families["ar"].isoflop.minima[0]
    lowest = min((p for p in points if p.family == "ar" and p.budget == m.budget), key=lambda p: p.loss)
    assert (m.params.value, m.loss.value) == (pytest.approx(lowest.params), pytest.approx(lowest.loss))


def test_losses_that_curve_downwards_are_flagged() -> None:
    points = [replace(p, loss=10 - p.loss) for p in planted_points(families=("ar",))]
    assert all(NOT_CONVEX in m.flags for m in quick(points).families["ar"].isoflop.minima)


def test_noise_falls_back_from_seeds_to_scatter_to_standard_errors_to_unknown() -> None:
    def source(points: list[Point]) -> tuple[float | None, str]:
        every = curves(points)
        noise = estimate_noise([curve for curve in every if curve.family == "ar"], every)
        return noise.sd, noise.source

    assert "seeds" in source(planted_points(sizes=3, seeds=3, sd=0.01))[1]
    assert "parabolas" in source(planted_points(sizes=6, sd=0.01))[1]
    assert "laws" in source(planted_points(sizes=3, sd=0.01))[1]
    two = planted_points(sizes=3, sd=0.01, budgets=BUDGETS[:2])
    assert source([replace(p, loss_se=0.02) for p in two])[0] == pytest.approx(0.02)
    sd, said = source(two)
    assert sd is None and "unknown" in said


def test_without_noise_known_there_are_no_intervals_and_a_warning() -> None:
    fits = quick(planted_points(sizes=3, budgets=BUDGETS[:2]))
    law = fits.families["ar"].isoflop.loss
    assert law and law.exponent.low is None
    assert any("noise is unknown" in warning for warning in fits.warnings)


# Binomial: of 200 intervals that cover 95 % of the time, fewer than 88 % cover with probability 3e-5. Above 95 % an
# interval is wider than it need be, which three sizes with no seeds at all cannot avoid.
@pytest.mark.parametrize(
    ("sizes", "seeds", "families"), [(3, 2, ("ar", "mdlm")), (5, 1, ("ar", "mdlm")), (3, 1, tuple(WORLD))]
)
def test_intervals_of_exponents_and_multipliers_cover_the_truth(
    sizes: int, seeds: int, families: tuple[str, ...]
) -> None:
    hits: dict[str, list[bool]] = {}
    for replication in range(200):
        points = planted_points(replication, sizes=sizes, seeds=seeds, sd=0.01, families=families)
        for what, estimate, truth in _estimates(points):
            assert estimate.low is not None and estimate.high is not None
            hits.setdefault(what, []).append(estimate.low <= truth <= estimate.high)
    coverage = {what: float(np.mean(hit)) for what, hit in hits.items()}
    assert all(0.88 <= share <= 0.995 for share in coverage.values()), coverage


def _estimates(points: list[Point]) -> list[tuple[str, Estimate, float]]:
    every = curves(points)
    fits = {}
    for name in ("ar", "mdlm"):
        own = [curve for curve in every if curve.family == name]
        fits[name] = fit_isoflop(own, estimate_noise(own, every), [len(name)], 200)
    (ar, reference), (mdlm, best) = fits["ar"], fits["mdlm"]
    assert ar.params and mdlm.loss and best and reference
    k = multiplier(best, reference, "ar")
    assert k
    true_k = [multiplier_of("mdlm", c) for c in BUDGETS]
    return [
        ("a", ar.params.exponent, WORLD["ar"].a),
        ("g", mdlm.loss.exponent, -WORLD["mdlm"].g),
        ("loss", mdlm.minima[0].loss, WORLD["mdlm"].loss(BUDGETS[0], WORLD["mdlm"].best(BUDGETS[0]))),
        ("k", k.ratios[-1].multiplier, true_k[-1]),
        ("mean k", k.mean, float(np.exp(np.mean(np.log(true_k))))),
        ("trend", _trend(k), 1 - WORLD["mdlm"].g / WORLD["ar"].g),
    ]


def _trend(k: Multiplier) -> Estimate:
    assert k.trend
    return k.trend


@pytest.mark.parametrize("change", [lambda p: replace(p, budget=None), lambda p: replace(p, flops=p.flops * 0.95)])
def test_budgets_are_found_from_flops(change: Callable[[Point], Point]) -> None:
    points = [change(p) if i % 3 == 0 else p for i, p in enumerate(planted_points())]
    minima = quick(points).families["ar"].isoflop.minima
    assert [m.budget for m in minima] == pytest.approx(BUDGETS, rel=0.03)
    assert [m.sizes for m in minima] == [5, 5, 5]
