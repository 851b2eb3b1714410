"""The power of a comparison, against the integral that defines noncentral t, and against planted noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import chi2, norm, t

from redraft.scaling.laws.multiplier import Estimate
from redraft.scaling.power import Design, compute_factor, could_have_seen, detectable, detectable_by, seeds_needed

DESIGNS = [Design(n, rho) for n in (2, 3, 5, 20) for rho in (None, 0.0, 0.7)]


def integral(shift: float, dof: int) -> float:
    """P(|Z + shift| > t_.975 sqrt(X / dof)), Z normal and X chi-square: the power, by its definition."""
    edge = t.ppf(0.975, dof)
    at = lambda x: norm.sf(edge * math.sqrt(x / dof) - shift) + norm.cdf(-edge * math.sqrt(x / dof) - shift)
    return float(quad(lambda u: at(chi2.ppf(u, dof)), 0, 1, limit=200)[0])


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_power_at_the_detectable_difference_is_eighty_percent(design: Design) -> None:
    """By quadrature of the definition, not by the noncentral t that found it."""
    sd = 0.04
    shift = detectable_by(design, sd) / design.error(sd)
    assert integral(shift, design.dof) == pytest.approx(0.8, abs=1e-6)


def test_planted_differences_are_found_in_four_of_five_studies() -> None:
    """20,000 studies of four paired seeds: the share has a standard error of sqrt(.8 x .2 / 20000) = .0028."""
    design, sd = Design(4, 0.6), 0.05
    gap, rng = detectable_by(design, sd), np.random.default_rng(0)
    shared = math.sqrt(0.6) * rng.standard_normal((20_000, 1, 4))
    runs = sd * (shared + math.sqrt(0.4) * rng.standard_normal((20_000, 2, 4)))
    differences = runs[:, 1] - runs[:, 0] + gap
    statistic = differences.mean(1) / (differences.std(1, ddof=1) / 2)
    assert np.mean(np.abs(statistic) > t.ppf(0.975, 3)) == pytest.approx(0.8, abs=4 * 0.0028)


@pytest.mark.parametrize("rho", [None, 0.5])
def test_more_seeds_resolve_less(rho: float | None) -> None:
    seen = [detectable_by(Design(n, rho), 1.0) for n in range(2, 40)]
    assert all(before > after for before, after in zip(seen, seen[1:]))


@pytest.mark.parametrize("rho", [0.2, 0.9])
def test_pairing_shrinks_the_difference_by_the_root_of_what_is_not_shared(rho: float) -> None:
    for n in (2, 5, 30):
        alone, paired = detectable_by(Design(n, 0.0), 1.0), detectable_by(Design(n, rho), 1.0)
        assert paired / alone == pytest.approx(math.sqrt(1 - rho), rel=1e-9)


@pytest.mark.parametrize("difference", [0.01, 0.04, 0.3])
@pytest.mark.parametrize("rho", [None, 0.6])
def test_the_seeds_needed_are_the_fewest(difference: float, rho: float | None) -> None:
    n = seeds_needed(difference, 0.04, rho)
    assert n is not None and detectable_by(Design(n, rho), 0.04) <= difference
    assert n == 2 or detectable_by(Design(n - 1, rho), 0.04) > difference


def test_what_cannot_be_seen_is_said() -> None:
    assert detectable(1.0, 0) == math.inf and detectable(0.0, 3) == 0.0
    assert seeds_needed(1e-6, 1.0) is None


def test_a_normal_interval_could_have_seen_2_8_errors() -> None:
    """1.960 + .8416 standard errors, less what the other tail adds."""
    assert could_have_seen(Estimate(0.0, -1.96, 1.96)) == pytest.approx(2.8016, abs=1e-3)
    assert could_have_seen(Estimate(0.0)) is None


def test_a_slope_turns_nats_into_compute() -> None:
    """loss = 3 C^-.1 falls by d where C grows by the factor, to first order."""
    factor = compute_factor(0.003, 0.1 * 3.0)
    assert 3 - 3 * factor**-0.1 == pytest.approx(0.003, rel=1e-3)
