"""What an evaluation says beforehand that it will cost is what it does."""

from __future__ import annotations

import numpy as np
import pytest

from redraft.evaluation.likelihood.cost import DRAWS, PATIENCE, ROWS, affordable, cost, cost_sentence, seconds
from redraft.evaluation.likelihood.estimators import ESTIMATORS, Estimator, build, own_bound
from redraft.evaluation.likelihood.nelbo import as_rows, batches, draw_nats
from redraft.families.base import Family
from redraft.families.base import build as build_family
from redraft.registry import FAMILIES
from redraft.text.shards.packing import Rows
from tests.laws.test_sampling import small_network

V = 5
SETTINGS = {"importance_weighted": {"k": 2}, "path_weighted": {"k": 2, "steps": 3}}
VARIANTS = {
    **{name: (name, {}) for name in FAMILIES},
    "mdlm on a grid": ("mdlm", {"grid": 8}),
    "esolm half": ("esolm", {"alpha_0": 0.5}),
    "esolm A": ("esolm", {"variant": "A"}),
}


def family_of(name: str) -> Family:
    return build_family(*VARIANTS[name], V)


def fitting(family: Family) -> list[Estimator]:
    kinds = [name for name, kind in ESTIMATORS.items() if kind().refusal(family) is None]
    return [build(name, SETTINGS.get(name, {}), family) for name in kinds]


def windows() -> Rows:
    """Of three lengths, so that batches hold rows of several."""
    rng, lengths = np.random.default_rng(0), np.array([4, 8, 6, 8, 4])
    scored = np.arange(8) < lengths[:, None]
    return Rows(rng.integers(0, V, (5, 8)) * scored, scored, np.arange(5), lengths)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_passes_that_are_told_are_those_that_are_taken(name: str) -> None:
    family, network = family_of(name), small_network(V)
    for estimator in fitting(family):
        for rows in (windows(), as_rows(windows().tokens)):
            if name == "esolm A" and rows.lengths is not None:
                continue  # its loop is over whole rows
            heard = [0]
            told = draw_nats(network, family, rows, estimator, 3, 4, told=heard.append)
            assert heard[-1] == cost(rows, estimator, family, 3, 4).passes, estimator
            assert told.equal(draw_nats(network, family, rows, estimator, 3, 4))


@pytest.mark.parametrize("name", VARIANTS)
def test_defaults_are_for_the_patience_of_a_person(name: str) -> None:
    """Half a minute of tokens, or the two windows without which there is no error; an own bound keeps its 512 x 4."""
    family = family_of(name)
    for length in (64, 256, 1024):
        for kind in ESTIMATORS.values():
            estimator = kind()
            if estimator.refusal(family) is not None:
                continue
            rows, draws = affordable(estimator, family, length)
            passes = rows * draws * estimator.passes(family, length)
            assert rows == 2 or passes * length <= PATIENCE or passes <= 2 * ROWS * DRAWS
        assert affordable(own_bound(family), family, length) == (ROWS, DRAWS)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_time_is_expected_of_every_family(name: str) -> None:
    family, network, rows = family_of(name), small_network(V), windows()
    price = cost(rows, own_bound(family), family, 4, 4)
    expected = seconds(price, network, family, next(batches(rows, 1, 4, network.embedding.device)))
    assert 0 < expected < 60
    assert cost_sentence(price, "windows", 30.0).endswith("passes of a row through the network, about 30 s.")


def test_a_bound_of_steps_is_not_called_one_of_continuous_time() -> None:
    for name in VARIANTS:
        family = family_of(name)
        grid = getattr(family, "grid", 0)
        names = {estimator.name for estimator in fitting(family)}
        own, other = ("discrete_time", "continuous_time") if grid else ("continuous_time", "discrete_time")
        assert own_bound(family).name == own and own in names and other not in names
    assert own_bound(family_of("d3pm")).name == own_bound(family_of("mdlm on a grid")).name == "discrete_time"
