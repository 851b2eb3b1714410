"""L(N, D): both engines find a planted law, one outlier does not move Huber's, and intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from redraft.scaling.laws.multiplier import Estimate
from redraft.scaling.laws.parametric import DELTA, Law, Parametric, fit_parametric, huber_fit, variable_projection
from redraft.scaling.records import Point

CHINCHILLA = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # arXiv:2203.15556, as vpnls plants it
Array = NDArray[np.float64]


def grid(budgets: int, sizes: int, first: float = 18, last: float = 21) -> tuple[Array, Array]:
    """Sizes and token counts, both [budgets * sizes], centred near 20 tokens a parameter."""
    flops = np.logspace(first, last, budgets)[:, None]
    params = np.sqrt(flops / 120) * np.exp(np.linspace(-1.5, 1.5, sizes))
    return params.ravel(), (flops / 6 / params).ravel()


def as_points(params: Array, tokens: Array, loss: Array) -> list[Point]:
    return [Point("ar", n, d, 6 * n * d, x) for n, d, x in zip(params.tolist(), tokens.tolist(), loss.tolist())]


def test_both_engines_recover_a_planted_law() -> None:
    n, d = grid(8, 16)
    loss = CHINCHILLA.at(n, d)
    projected = variable_projection(n, d, loss)
    for law, rel in ((projected, 1e-5), (huber_fit(n, d, loss, projected), 1e-9)):
        for field in ("E", "A", "B", "alpha", "beta"):
            assert getattr(law, field) == pytest.approx(getattr(CHINCHILLA, field), rel=rel)


def test_huber_engine_needs_no_good_start() -> None:
    n, d = grid(8, 16)
    law = huber_fit(n, d, CHINCHILLA.at(n, d), Law(1.0, 1.0, 1.0, 1.0, 0.05))
    assert law.alpha == pytest.approx(0.34, rel=1e-9)


def test_huber_engine_finds_no_less_than_a_general_optimiser() -> None:
    n, d = grid(6, 8)
    loss = CHINCHILLA.at(n, d) * np.exp(0.01 * np.random.default_rng(0).standard_normal(len(n)))

    def objective(theta: Array) -> float:
        law = Law(*np.exp(theta[:3]), *theta[3:])
        size = np.abs(np.log(law.at(n, d)) - np.log(loss))
        return float(1e3 * np.where(size < DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum())

    ours = huber_fit(n, d, loss, variable_projection(n, d, loss))
    theta = np.array([np.log(ours.E), np.log(ours.A), np.log(ours.B), ours.alpha, ours.beta])
    polished = minimize(objective, theta, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-10})
    assert objective(theta) <= polished.fun * (1 + 1e-6)


def test_huber_resists_an_outlier() -> None:
    n, d = grid(8, 16)
    loss = CHINCHILLA.at(n, d) * np.exp(0.001 * np.random.default_rng(0).standard_normal(len(n)))
    loss[5] *= 1.5
    fit = fit_parametric(as_points(n, d, loss), [0], 60)
    assert fit.law and fit.projected and fit.alpha and fit.alpha.low and fit.alpha.high
    assert fit.law.alpha == pytest.approx(0.34, abs=0.01)
    assert abs(fit.projected.alpha - 0.34) > 0.015, "least squares should have moved, or the outlier tests nothing"
    assert fit.alpha.high - fit.alpha.low < 0.05


@pytest.mark.parametrize("runs", [1, 5])
def test_too_few_runs_are_said_not_raised(runs: int) -> None:
    n, d = grid(3, 3)
    fit = fit_parametric(as_points(n, d, CHINCHILLA.at(n, d))[:runs], [0], 60)
    assert fit == Parametric(runs, flags=("too few runs",))


def test_a_law_that_two_sizes_cannot_show_is_refused() -> None:
    n, d = np.repeat([1e6, 1e7], 4), np.tile([1e8, 2e8, 4e8, 8e8], 2)
    assert fit_parametric(as_points(n, d, CHINCHILLA.at(n, d)), [0], 60).law is None


def test_intervals_cover_the_truth() -> None:
    n, d = grid(3, 5, 17, 18.5)
    hits = []
    for seed in range(60):
        noise = np.exp(0.004 * np.random.default_rng(seed).standard_normal(len(n)))
        fit = fit_parametric(as_points(n, d, CHINCHILLA.at(n, d) * noise), [seed], 100)
        pairs = [(fit.alpha, 0.34), (fit.beta, 0.28), (fit.allocation, CHINCHILLA.allocation)]
        hits.append([_covers(estimate, truth) for estimate, truth in pairs])
    # Of 60 intervals at 95 %, fewer than 51 cover with probability 2e-3; the bootstrap's 100 draws cost a little more.
    assert np.mean(hits, axis=0).min() > 0.84, np.mean(hits, axis=0)


def _covers(estimate: Estimate | None, truth: float) -> bool:
    assert estimate and estimate.low is not None and estimate.high is not None
    return estimate.low <= truth <= estimate.high
