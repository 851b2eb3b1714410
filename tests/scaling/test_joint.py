"""Shared terms over families, repeated data, profile likelihood and drawing runs: planted truths and known equalities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from redraft.scaling.fit import fit
from redraft.scaling.laws.data_constrained import effective_tokens, fit_data_constrained
from redraft.scaling.laws.joint import SEPARATE, fit_joint
from redraft.scaling.laws.least_squares import DELTA, SQUARES, Axes, Objective, descend
from redraft.scaling.laws.parametric import Law, fit_parametric
from redraft.scaling.laws.robustness import robustness
from redraft.scaling.records import Point
from tests.planted import CHINCHILLA, UNEVEN, law_points

ANOTHER_FLOOR = replace(CHINCHILLA, E=2.0)
ANOTHER_SLOPE = replace(CHINCHILLA, alpha=0.40, A=1200.0)


def joint(laws: dict[str, Law], noise: float) -> object:
    runs = {name: law_points(law, family=name, noise=noise, seed=7) for name, law in laws.items()}
    return fit_joint(runs, {name: w for name, own in runs.items() if (w := fit_parametric(own, [0], 40).law)})


@pytest.mark.parametrize(
    ("other", "supported"),
    [
        (replace(CHINCHILLA, A=600.0, B=900.0), "one E, alpha and beta"),
        (ANOTHER_SLOPE, "one E"),
        (ANOTHER_FLOOR, SEPARATE),
    ],
)
def test_as_much_is_shared_as_the_planted_laws_share(other: Law, supported: str) -> None:
    found = joint({"ar": CHINCHILLA, "mdlm": other}, noise=1e-4)
    assert found.supported == supported
    squares = [model.squares for model in found.models]
    assert squares == sorted(squares), "a model with fewer parameters cannot fit better"
    assert [model.parameters for model in found.models] == [10, 9, 7]


def test_shared_terms_are_recovered() -> None:
    other = replace(CHINCHILLA, A=600.0, B=900.0)
    model = joint({"ar": CHINCHILLA, "mdlm": other}, noise=0.0).models[-1]
    for name, law in (("ar", CHINCHILLA), ("mdlm", other)):
        for field in ("E", "A", "B", "alpha", "beta"):
            assert getattr(model.laws[name], field) == pytest.approx(getattr(law, field), rel=1e-4)


def test_one_family_has_nothing_to_share() -> None:
    assert joint({"ar": CHINCHILLA}, noise=0.0) is None
    assert fit(law_points(), resamples=40).joint is None


def test_the_first_epoch_is_worth_its_tokens_and_none_more_than_the_bound() -> None:
    d, unique = np.array([5e8, 1e9, 4e9, 1e12]), np.array([1e9, 1e9, 1e9, 1e9])
    worth = effective_tokens(d, unique, 15.0)
    assert worth[:2] == pytest.approx(d[:2])
    assert 0.85 * d[2] < worth[2] < d[2], "four epochs are almost as good as fresh data"
    assert worth[3] == pytest.approx(16e9)


def repeated(decay: float, noise: float, seed: int = 0) -> list[Point]:
    """Runs on a corpus of 2e9 tokens: up to dozens of epochs."""
    rng, points = np.random.default_rng(seed), []
    for p in law_points(UNEVEN, grid="wide"):
        unique = min(p.tokens, 2e9)
        worth = effective_tokens(np.array(p.tokens), np.array(unique), decay)
        loss = UNEVEN.at(np.array(p.params), worth) * np.exp(noise * rng.standard_normal())
        points.append(replace(p, loss=float(loss), unique_tokens=unique))
    return points


def test_decay_of_repeated_data_is_recovered() -> None:
    found = fit_data_constrained(repeated(15.0, 0.0))
    assert found and found.decay.value == pytest.approx(15, rel=0.01)
    assert found.law.alpha == pytest.approx(UNEVEN.alpha, rel=0.01)
    assert found.epochs > 10


def test_noisy_decay_has_an_interval_about_the_truth() -> None:
    found = fit_data_constrained(repeated(15.0, 0.002))
    assert found and found.decay.low and found.decay.high
    assert found.decay.low < 15 < found.decay.high < 60


def test_data_that_do_not_repeat_are_not_fitted_so() -> None:
    assert fit_data_constrained(law_points()) is None
    assert fit_data_constrained([replace(p, unique_tokens=p.tokens) for p in law_points()]) is None


def test_repeats_are_told() -> None:
    assert any("repeat data" in text for text in fit(repeated(15.0, 0.002), resamples=40).warnings)


def test_profile_and_runs_surround_the_law() -> None:
    points = law_points(noise=0.003)
    law = fit_parametric(points, [0], 40).law
    assert law
    found = robustness(points, law, [0], 200)
    assert found.runs
    for ends in (*found.profile.values(), *found.runs.values()):
        assert ends.low is not None and ends.high is not None and ends.low < ends.value < ends.high
    assert robustness(points[:20], law, [0], 60).runs is None, "20 runs are too few to draw from"


def test_ends_of_a_profile_are_where_the_squares_reach_their_limit() -> None:
    """Checked by holding the parameter there and fitting all others afresh, from many starts."""
    points = law_points(noise=0.01)
    fitted = fit_parametric(points, [0], 40)
    assert fitted.law
    ends = robustness(points, fitted.law, [0], 40).profile["alpha"]
    assert ends.low and ends.high
    axes = Axes(np.array([p.params for p in points]), np.array([p.tokens for p in points]))
    log_loss = np.log([p.loss for p in points])
    rng = np.random.default_rng(0)
    starts = axes.theta(np.array([1.69, 406.4, 410.7, 0.34, 0.28])) + 0.3 * rng.standard_normal((200, 5))
    least = descend(starts, axes, Objective(log_loss, SQUARES), 500)[1].min()
    limit = least * (1 + 2.0423**2 / 30)  # Student's t at .975 with 35 - 5 degrees of freedom
    for end in (ends.low, ends.high):
        starts[:, 3] = np.log(end)
        held = Objective(log_loss, SQUARES, free=(True, True, True, False, True))
        assert descend(starts, axes, held, 500)[1].min() == pytest.approx(limit, rel=2e-3)


def test_drawing_a_run_twice_is_having_it_twice() -> None:
    points = law_points(noise=0.01)
    axes = Axes(np.array([p.params for p in points]), np.array([p.tokens for p in points]))
    log_loss = np.log([p.loss for p in points])
    counts = np.ones(len(points))
    counts[3] = 2
    theta = axes.theta(np.array([[1.69, 406.4, 410.7, 0.34, 0.28]]))
    once, twice = Objective(log_loss), Objective(log_loss, counts=counts)
    residual = axes.log_loss(theta)[0] - log_loss
    extra = min(abs(residual[0, 3]), DELTA)
    assert twice.value(residual) - once.value(residual) == pytest.approx(
        extra**2 / 2 if extra < DELTA else DELTA * (abs(residual[0, 3]) - DELTA / 2)
    )
