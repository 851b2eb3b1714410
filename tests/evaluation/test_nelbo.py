"""The reported bound: the same whatever the batch size, with errors that mean what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from redraft.evaluation.generation.evaluators import RedraftEvaluator
from redraft.evaluation.likelihood.nelbo import bound
from redraft.families.base import build
from redraft.registry import FAMILIES
from tests.laws.test_sampling import small_network

V = 5


def windows(n: int = 12, length: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(0, V, (n, length))


@pytest.mark.parametrize("name", FAMILIES)
def test_bound_does_not_depend_on_the_batch_size(name: str) -> None:
    family, network = build(name, {}, V), small_network(V)
    one, other = (bound(network, family, windows(), 3, batch) for batch in (1, 64))
    assert one.nats == pytest.approx(other.nats, rel=1e-9) and one.draws == (1 if family.exact else 3)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "ar"])
def test_monte_carlo_error_covers_the_spread_of_repeated_evaluations(name: str) -> None:
    """64 seeds: their spread is at most the stated error (draws are stratified, the error is computed as if they were
    not) up to the 5-sigma error of a standard deviation from 64 values, and the error is no more than 4 times it."""
    family, network = build(name, {}, V), small_network(V)
    results = [bound(network, family, windows(), 4, 64, seed) for seed in range(64)]
    spread = float(np.std([r.nats for r in results], ddof=1))
    stated = float(np.mean([r.monte_carlo_error or 0 for r in results]))
    assert spread < stated * (1 + 5 / math.sqrt(2 * 63))
    assert stated < 4 * spread


def test_exact_likelihood_has_no_monte_carlo_error() -> None:
    result = bound(small_network(V), build("ar", {}, V), windows(), 4, 3)
    assert result.exact and result.monte_carlo_error == 0 and result.sampling_error > 0
    assert result.perplexity == pytest.approx(math.exp(result.nats))
    assert result.bits_per_byte(2.0) == pytest.approx(result.nats / math.log(2) / 2)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "ar"])
def test_one_draw_does_not_tell_its_error(name: str) -> None:
    result = bound(small_network(V), build(name, {}, V), windows(), 1, 8)
    assert result.monte_carlo_error is None and result.sampling_error > 0 and not result.exact


def test_judge_scores_its_own_token_ids() -> None:
    from redraft.hub.model import Model
    from redraft.text.tokenizers.tokenizer import load_tokenizer

    family, network = build("ar", {}, V), small_network(V)
    judge = Model(family, network, load_tokenizer("bytes"), 10, {})
    tokens = torch.from_numpy(windows(6))
    log_p = judge.log_p(tokens)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    first = network.head(network.trunk(family.view(torch.full((1, 1), V))))[0, 0].log_softmax(-1)  # type: ignore[attr-defined]
    nats = -(log_p.sum(1) + first[tokens[:, 0]]) / tokens.shape[1]
    found, _ = RedraftEvaluator.of(judge).score(tokens, judge.tokenizer).per_token()
    assert found == pytest.approx(nats.mean().item(), rel=1e-9)
