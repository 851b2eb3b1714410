"""Densities of training times: they integrate to one, and their inverses invert them."""

from __future__ import annotations

import math

import pytest
import torch

from redraft.errors import UserError
from redraft.noise.counter_rng import Key, times
from redraft.noise.time_density import Bell, Power, TimeDensity, Uniform
from tests.world import quadrature

BELLS = [Bell(), Bell(0.5, 0.05), Bell(0.0, 0.3), Bell(1.0, 0.1), Bell(0.7, 10.0)]
EVERY: list[TimeDensity] = [Uniform(), Power(3), *BELLS]
U = torch.linspace(1e-3, 1, 400, dtype=torch.float64)


@pytest.mark.parametrize("bell", BELLS, ids=str)
def test_density_integrates_to_one(bell: Bell) -> None:
    total = sum(w * float(bell.density(torch.tensor(t, dtype=torch.float64))) for t, w in quadrature(200))
    assert total == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("bell", BELLS, ids=str)
def test_inverse_inverts_the_cumulative_distribution(bell: Bell) -> None:
    """Both ways, and the cumulative distribution is the integral of the density."""
    t = bell.times(U)
    assert torch.allclose(bell.cumulative(t), U, atol=1e-12) and (t.diff() > 0).all() and (t > 0).all()
    inside = t[(U > 0.01) & (U < 0.99)]
    assert torch.allclose(bell.times(bell.cumulative(inside)), inside, atol=1e-9)
    middle = inside.clone().requires_grad_()
    (slope,) = torch.autograd.grad(bell.cumulative(middle).sum(), middle)
    assert torch.allclose(slope, bell.density(inside), rtol=1e-9)
    assert bell.times(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("density", EVERY, ids=str)
def test_weight_is_the_slope_of_the_times(density: TimeDensity) -> None:
    u, step = U[10:-10], 1e-7
    slope = (density.times(u + step) - density.times(u - step)) / (2 * step)
    weight = density.weight(u)
    assert torch.allclose(slope, torch.ones_like(u) if weight is None else weight, rtol=1e-5)


@pytest.mark.parametrize("density", [*EVERY[:3], Bell(0.4, 0.3), Bell(0.0, 0.5), Bell(0.7, 10.0)], ids=str)
def test_weighted_means_are_those_over_uniform_times(density: TimeDensity) -> None:
    """E_u f(t(u)) dt/du = E_t f(t) for powers of t, by quadrature in u."""
    for power in (0, 1, 2, 7):
        mean = 0.0
        for node, w in quadrature(150):
            u = torch.tensor(node, dtype=torch.float64)
            weight = density.weight(u)
            mean += w * float(density.times(u) ** power * (1 if weight is None else weight))
        assert mean == pytest.approx(1 / (power + 1), rel=1e-6)


def test_evenly_spread_uniforms_give_times_that_are_evenly_spread_under_the_density() -> None:
    """Any run of samples: as many times in each of ten equally probable intervals, to within two."""
    bell = Bell(0.4, 0.15)
    t = bell.times(times(Key.of(0), torch.arange(700, 900)))
    edges = bell.times(torch.arange(1, 10, dtype=torch.float64) / 10)
    count = torch.bincount(torch.bucketize(t, edges), minlength=10)
    assert (count - 20).abs().max() <= 2


def test_a_wide_bell_is_uniform() -> None:
    wide = Bell(0.5, 10.0)
    assert torch.allclose(wide.times(U), U, atol=2e-4) and torch.allclose(wide.weight(U), torch.ones_like(U), rtol=2e-3)
    assert Uniform().times(U) is U and Uniform().weight(U) is None


def test_times_are_positive_where_uniforms_are_least() -> None:
    least = torch.tensor([2.0**-53, 0.5, 1.0], dtype=torch.float64)
    for bell in BELLS:
        assert (bell.times(least) > 0).all() and (bell.times(least) <= 1).all() and bell.weight(least).isfinite().all()


@pytest.mark.parametrize(
    ("mean", "width", "message"),
    [
        (1.5, 0.2, r"family.time_mean must be in \[0, 1\], got 1.5"),
        (math.nan, 0.2, r"family.time_mean must be in \[0, 1\], got nan"),
        (0.5, 0.0, r"family.time_width must be in \[0.05, 10\], got 0.0"),
        (0.5, math.inf, r"family.time_width must be in \[0.05, 10\], got inf"),
    ],
)
def test_a_density_that_is_none_is_refused(mean: float, width: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Bell(mean, width)
