"""Every estimator reads rows of different lengths: what a row costs does not depend on its company."""

from __future__ import annotations

import pytest
import torch

from redraft.evaluation.likelihood.estimators import ESTIMATORS, build, own_bound
from redraft.evaluation.likelihood.nelbo import bound, draw_nats
from redraft.families.base import build as build_family
from redraft.network.padding import reading
from redraft.noise.counter_rng import Key
from redraft.registry import FAMILIES
from redraft.text.shards.packing import Rows
from tests.network.test_padding import LENGTHS, SHAPES, V, alone, company, network_of
from tests.rounding import CLOSE

SETTINGS = {"importance_weighted": {"k": 2}, "path_weighted": {"k": 2, "steps": 4}}
KEY = Key.of(1)
PAIRS = [
    (name, family)
    for name, kind in ESTIMATORS.items()
    for family in FAMILIES
    if kind().refusal(build_family(family, {}, V)) is None
]


@pytest.mark.parametrize(("name", "family"), PAIRS)
@torch.no_grad()
def test_a_row_alone_costs_what_it_costs_in_company(name: str, family: str) -> None:
    chosen, network, batch = build_family(family, {}, V), network_of(SHAPES["dit"]), company()
    estimator = build(name, dict(SETTINGS.get(name, {})), chosen)
    together = estimator.nats(reading(network, batch), chosen, batch, draws=1, key=KEY)
    singles = [estimator.nats(network, chosen, one, draws=1, key=KEY) for one in alone(batch)]
    assert torch.allclose(together, torch.cat(singles), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_bound_is_nats_over_scored_tokens_at_any_batch_size(family: str) -> None:
    chosen, network, batch = build_family(family, {}, V), network_of(SHAPES["dit"]), company()
    rows = Rows(batch.tokens.numpy(), batch.scored.numpy(), batch.index.numpy(), torch.tensor(LENGTHS).numpy())
    results = [bound(network, chosen, rows, 3, size) for size in (1, 4, 64)]
    nats = draw_nats(network, chosen, rows, own_bound(chosen), 3, 5)
    assert results[0].nats == pytest.approx(float(nats.mean(1).sum() / batch.scored.sum()), rel=1e-9)
    for other in results[1:]:
        assert other.nats == pytest.approx(results[0].nats, rel=1e-9)
        assert other.sampling_error == pytest.approx(results[0].sampling_error, rel=1e-9)
