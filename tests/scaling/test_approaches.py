"""Each engine against laws known exactly: projection, envelope, extrapolation, conventions, looseness, k(loss)."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from redraft.scaling.approaches import fit_approaches
from redraft.scaling.caveats import family_caveats
from redraft.scaling.fit import fit
from redraft.scaling.laws.isoflop import curves
from redraft.scaling.laws.multiplier import Best, multiplier, multiplier_by_loss
from redraft.scaling.laws.parabola_bias import optimum
from redraft.scaling.laws.parametric import Law, columns, variable_projection
from redraft.scaling.records import Count, Point
from redraft.scaling.schema import to_json
from tests.planted import CHINCHILLA, UNEVEN, best_size, law_points, planted_points

quick = partial(fit, resamples=40, checks=False)  # for what needs no check of the fit


@pytest.mark.parametrize(("budgets", "sizes"), [(8, 16), (4, 5)])
@pytest.mark.parametrize("law", [CHINCHILLA, UNEVEN], ids=["chinchilla", "uneven"])
def test_projection_recovers_every_parameter(law: Law, budgets: int, sizes: int) -> None:
    """The vpnls synthetic among them: alpha .34, beta .28, A 406.4, B 410.7, E 1.69 from 8 budgets x 16 points."""
    found = variable_projection(*columns(law_points(law, budgets=budgets, sizes=sizes)))
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-9)


def test_projection_finds_an_absent_term() -> None:
    law = Law(0.0, 50.0, 60.0, 0.2, 0.2)
    found = variable_projection(*columns(law_points(law)))
    assert pytest.approx(0, abs=1e-6) == found.E and found.alpha == pytest.approx(0.2, rel=1e-4)


def test_optimum_of_a_law_is_exact_and_where_the_loss_is_least() -> None:
    points = law_points(UNEVEN, budgets=1)
    log_n, log_d = np.log([(p.params, p.tokens) for p in points]).T
    plain = np.array([[UNEVEN.E, UNEVEN.A, UNEVEN.B, UNEVEN.alpha, UNEVEN.beta]])
    found = optimum(log_n, log_d, plain)[:, 0]
    assert math.exp(found[0]) == pytest.approx(best_size(UNEVEN, 1e18), rel=1e-9)
    near = np.exp(found[0] + np.linspace(-0.01, 0.01, 21))
    assert UNEVEN.at(near, 1e18 / 6 / near).argmin() == 10


def test_optimum_follows_a_bent_budget() -> None:
    """C = 6 (N + h) D with a head h: no line in logarithms, as under blocks+head; against a fine search."""
    n = np.geomspace(3e7, 8e8, 9)
    tokens = 1e18 / 6 / (n + 5e7)
    plain = np.array([[UNEVEN.E, UNEVEN.A, UNEVEN.B, UNEVEN.alpha, UNEVEN.beta]])
    fine = np.geomspace(n[0], n[-1], 20001)
    best = fine[UNEVEN.at(fine, 1e18 / 6 / (fine + 5e7)).argmin()]
    assert math.exp(optimum(np.log(n), np.log(tokens), plain)[0, 0]) == pytest.approx(best, rel=0.03)


def test_an_exact_parabola_is_left_alone() -> None:
    """Where L(N, D) does not fit the runs, no bias is taken from it."""
    fitted = quick(planted_points()).families["ar"]
    assert fitted.isoflop.method == "parabolas"
    assert all(m.bias is None for m in fitted.isoflop.minima)


def test_a_large_bias_is_told() -> None:
    fitted = quick(law_points(UNEVEN, grid="wide", sizes=5)).families["ar"]
    assert any("parabolas put N* up to" in text for text in family_caveats(fitted))


def test_the_envelope_takes_the_lowest_run_and_drops_what_a_cheaper_budget_beats() -> None:
    points = law_points(sizes=2)
    worse = [replace(p, loss=p.loss + 1) if p.budget == points[-1].budget else p for p in points]
    fitted = quick(worse).families["ar"]
    assert fitted.laws is fitted.envelope and fitted.isoflop.loss is None
    assert fitted.envelope.loss and fitted.envelope.loss.budgets == 4
    for m in fitted.envelope.minima:
        assert m.loss.value == pytest.approx(min(p.loss for p in worse if p.budget == m.budget))


def test_held_out_budget_is_predicted_exactly_by_the_law_that_made_it() -> None:
    points = law_points()
    every = curves(points)
    errors = {h.engine: h for h in quick(points).families["ar"].held_out}
    assert set(errors) == {"envelope", "parabolas", "corrected", "parametric", "projection"}
    for name in ("parametric", "projection"):
        assert errors[name].loss_error == pytest.approx(0, abs=1e-6)
        assert errors[name].params_error == pytest.approx(0, abs=1e-5)
        assert errors[name].flops == every[-1].flops
    # A pure power law through losses that level off at E promises too much: the sign says which way.
    assert errors["corrected"].loss_error < -0.003


def test_two_budgets_leave_nothing_to_hold_out() -> None:
    assert quick(law_points(budgets=2)).families["ar"].held_out == ()


HEAD = 3e7  # parameters of a head that one convention counts and the other does not


def with_head(p: Point) -> Point:
    blocks, head = Count(p.params, p.flops), Count(p.params + HEAD, 6 * (p.params + HEAD) * p.tokens)
    return replace(p, counts={"blocks": blocks, "head": head}, convention="blocks")


def test_recounting_gives_the_optimum_of_the_other_convention() -> None:
    """Counted with the head, runs of one budget spend unequal FLOPs; moved to equal ones, N* is where it should be."""
    fits = fit([with_head(p) for p in law_points()], resamples=40)
    rows = {row.convention: row for row in fits.conventions}
    assert set(rows) == {"blocks", "head"} and all(row.moved for row in rows.values())
    own = fits.families["ar"].isoflop
    assert own.params and rows["blocks"].size_exponent and rows["head"].size_exponent
    assert rows["blocks"].size_exponent.value == pytest.approx(own.params.exponent.value, rel=1e-9)
    best = rows["head"].optimum
    assert best
    fine = np.geomspace(HEAD * 1.5, best.params.value * 10, 40001)
    truth = fine[CHINCHILLA.at(fine - HEAD, best.flops / 6 / fine).argmin()]
    assert best.params.value == pytest.approx(truth, rel=0.02)
    assert rows["head"].size_exponent.value < rows["blocks"].size_exponent.value - 0.02


def test_one_convention_gives_no_table() -> None:
    assert fit(law_points(), resamples=40).conventions == ()


def test_looseness_is_split_from_the_multiplier() -> None:
    """A bound that adds 3 % to every loss: k with it = k without it x the factor, and k without it is the planted one."""
    slow = law_points(family="mdlm", slower=4.0)
    loose = [replace(p, loss=1.03 * p.loss, loss_exact=p.loss, loss_kind="bound") for p in slow]
    exact = [replace(p, loss_kind="exact") for p in law_points()]
    fits = quick([*exact, *loose], resamples=60)
    found, k = fits.families["mdlm"].looseness, fits.families["mdlm"].multiplier
    assert found and k and found.tighter == "exact"
    for bound, tight, factor in zip(k.ratios, found.multiplier.ratios, found.factors):
        assert bound.multiplier.value == pytest.approx(tight.multiplier.value * factor.factor.value, rel=1e-9)
        assert factor.factor.value > 1.1
    assert found.multiplier.mean.value == pytest.approx(4, rel=0.03)


def test_noise_of_a_run_cancels_in_the_looseness() -> None:
    """The reference is noise-free here, so that nothing else is left."""
    slow = law_points(family="mdlm", slower=4.0, noise=0.005, grid="wide")
    loose = [replace(p, loss=1.03 * p.loss, loss_tight=p.loss) for p in slow]
    fits = quick([*law_points(grid="wide"), *loose], resamples=200)
    found, k = fits.families["mdlm"].looseness, fits.families["mdlm"].multiplier
    assert found and k and found.tighter == "tight"

    def width(low: float | None, high: float | None) -> float:
        assert low is not None and high is not None
        return math.log(high / low)

    assert width(found.mean.low, found.mean.high) < 0.2 * width(k.mean.low, k.mean.high)


def test_multiplier_at_a_loss_compares_the_two_laws() -> None:
    flops = np.geomspace(1e18, 1e21, 5)
    ar, slow = Best(flops, 20 * flops**-0.06), Best(flops, 20 * (flops / 7) ** -0.06)
    rising = Best(flops, 22 * flops**-0.058)
    for ratio in multiplier_by_loss(slow, ar):
        assert ratio.multiplier.value == pytest.approx(7, rel=1e-6)
        assert ratio.flops / ratio.reference_flops == pytest.approx(7, rel=1e-6)
    found = multiplier(rising, ar, "ar")
    assert found
    for ratio in multiplier_by_loss(rising, ar, np.array([1.3, 1.2])):
        assert ratio.flops == pytest.approx((22 / ratio.loss) ** (1 / 0.058), rel=1e-5)


def test_losses_of_two_kinds_are_compared_aloud() -> None:
    points = [replace(p, loss_kind="exact") for p in law_points()]
    points += [replace(p, loss_kind="bound") for p in law_points(family="mdlm", slower=4.0)]
    assert any("looseness of a bound" in text for text in quick(points).warnings)


@pytest.mark.parametrize("column", ["convention", "tokenizer", "data", "loss_kind"])
def test_runs_that_do_not_say_what_others_say_are_told(column: str) -> None:
    points = law_points()
    some = [replace(points[0], **{column: "x"}), *points[1:]]
    assert any(f"34 of 35 runs do not state their {column}" in text for text in quick(some).warnings)


def test_draws_of_a_family_do_not_depend_on_the_others() -> None:
    points = law_points(noise=0.01)
    alone = quick(points, resamples=60).families["ar"].parametric
    beside = quick([*points, *law_points(family="mdlm", noise=0.01)], resamples=60).families["ar"].parametric
    assert alone == beside
    assert fit_approaches(points, curves(points), 0, 60).parametric == alone


def test_arms_that_control_another_are_compared_run_by_run_and_get_no_law() -> None:
    """One size at two budgets beside the family's own grid; alone, the same rows are the best of each budget."""
    points = [replace(p, variant_of="ar", seed=0) for p in law_points(noise=0.01)]
    sizes = sorted({p.params for p in points if p.budget == points[0].budget})
    control = [replace(p, family="ar-cosine") for p in points if p.params == sizes[3] or p.budget != points[0].budget]
    control = list({p.budget: p for p in control}.values())[:3]
    found = quick([*points, *control])
    assert found.families["ar-cosine"].laws.loss is None and found.families["ar-cosine"].multiplier is None
    assert quick(control, reference="ar-cosine").families["ar-cosine"].laws.loss is not None


@pytest.mark.parametrize("seed", range(4))
def test_runs_without_any_law_are_fitted_without_one(seed: int) -> None:
    """Noise alone, and a loss that rises with compute: no number overflows, and JSON stays strict."""
    noise = np.random.default_rng(seed).standard_normal(15)
    points = law_points(budgets=3, sizes=5)
    for losses in (3 + 0.1 * noise, np.log([p.flops for p in points]) / 10):
        found = fit([replace(p, loss=float(v)) for p, v in zip(points, losses, strict=True)], resamples=40)
        json.dumps(to_json(found), allow_nan=False)
