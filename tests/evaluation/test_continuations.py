"""Requests: a score is a function of the request alone, the answers of a question share their noise, and the estimators agree
with enumeration; what cannot be scored is an error, never a score."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.evaluation.likelihood.continuations import (
    Guidance,
    Request,
    Scorer,
    default_estimator,
    fitted,
    number_of,
    pair,
)
from redraft.evaluation.likelihood.estimators import ChainRule, ImportanceWeighted, build
from redraft.families.base import Family
from redraft.families.base import build as family_of
from redraft.families.mdlm import MDLM
from redraft.hub.model import Model
from redraft.registry import FAMILIES
from redraft.text.tokenizers.tokenizer import Bytes, HuggingFace
from redraft.types import View
from tests.evaluation.models import model
from tests.laws.oracles import ORACLES
from tests.world import TEXTS, Oracle, P, V

QUESTIONS = ["What is it?", "Why?", "Because of the long winter nights,", ""]
ANSWERS = [" A thing.", " No reason", " x", " they slept for days."]


def requests() -> list[Request]:
    return [
        fitted(*pair(Bytes(), question, answer), question, 64, False)
        for question, answer in itertools.product(QUESTIONS, ANSWERS)
    ]


def scorer_of(whole: Model, **settings: Any) -> Scorer:
    return Scorer(whole, **{"estimator": default_estimator(whole.family), "draws": 4, **settings})


# A function of the request


@pytest.mark.parametrize(("name", "weight"), [*((name, 1.0) for name in FAMILIES), ("mdlm", 0.0)])
def test_a_score_does_not_depend_on_batch_order_or_company(name: str, weight: float) -> None:
    whole, asked = model(name), requests()
    first = scorer_of(whole, guidance=Guidance(weight)).score(asked)
    for batch, order in ((1, asked), (3, asked[::-1]), (500, asked[5:] + asked[:5]), (32, asked[7:8])):
        scores = dict(zip(order, scorer_of(whole, guidance=Guidance(weight), batch=batch).score(order), strict=True))
        for request, nats in zip(asked, first, strict=True):
            if request in scores:
                assert scores[request].nats == pytest.approx(nats.nats, rel=1e-9)
    assert all(math.isfinite(nats.nats) for nats in first)


@pytest.mark.parametrize("name", FAMILIES)
def test_another_seed_is_another_estimate_unless_it_is_exact(name: str) -> None:
    whole, asked = model(name), requests()[:3]
    first, second = (scorer_of(whole, seed=seed).score(asked) for seed in (0, 1))
    assert (first == second) == whole.family.exact
    # (A block of one token is exact too.)
    assert (not any(nats.error for nats in first)) == whole.family.exact


class Watching:
    """A network that remembers what it was shown."""

    def __init__(self, network: Any):
        self.network, self.shown = network, list[Tensor]()

    def trunk(self, view: View) -> Tensor:
        self.shown.append(view.tokens)
        return self.network.trunk(view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


def hidden(name: str, request: Request) -> Tensor:
    whole = model(name)
    watching = Watching(whole.network)
    scorer_of(replace(whole, network=watching), draws=16).score([request])
    (shown,) = watching.shown
    return shown != torch.tensor(request.context + request.continuation)


@pytest.mark.parametrize("name", ["mdlm", "sedd"])
def test_answers_of_one_question_are_hidden_alike_and_questions_apart(name: str) -> None:
    first, second = Request((1, 2), (3, 4, 5, 6), "a"), Request((1, 2), (9, 8, 7, 6), "a")
    other = replace(first, question="b")
    assert torch.equal(hidden(name, first), hidden(name, second))
    assert not torch.equal(hidden(name, first), hidden(name, other))
    assert not hidden(name, first)[:, :2].any()  # the context is given


def test_the_same_request_is_scored_once() -> None:
    whole = model("mdlm")
    watching = Watching(whole.network)
    request = requests()[0]
    scores = scorer_of(replace(whole, network=watching)).score([request, request, request])
    assert scores[0] == scores[1] == scores[2] and sum(map(len, watching.shown)) == 4


def test_numbers_of_questions_leave_room_for_draws() -> None:
    """Below 2^40, so 2^23 draws fit into 64 bits; and no two of ten thousand are alike."""
    numbers = {number_of(str(n)) for n in range(10_000)}
    assert len(numbers) == 10_000 and max(numbers) < 2**40


# The truth


def world(family: Family) -> Model:
    """The enumerable world as a model."""
    oracle: Oracle = ORACLES[family.name](family)
    oracle.embedding = torch.zeros(1)  # type: ignore[attr-defined]
    return Model(family, oracle, Bytes(), 3, {})  # type: ignore[arg-type]


def worlds_requests(given: int) -> list[Request]:
    return [Request(tuple(x[:given]), tuple(x[given:]), str(x[:given])) for x in TEXTS.tolist()]


def conditional(given: int) -> Tensor:
    """-log p(the rest | the first tokens) of every text, by enumeration."""
    same = (TEXTS[:, None, :given] == TEXTS[None, :, :given]).all(-1)
    return (same * P).sum(1).log() - P.log()


@pytest.mark.parametrize("given", [0, 1, 2])
@pytest.mark.parametrize("name", ["ar", "mdlm", "esolm", "bd3lm"])
def test_exact_estimators_are_the_conditional_likelihood(name: str, given: int) -> None:
    """With the exact network every order is exact, so the chain rule and any mean over orders are, for each text."""
    whole = world(family_of(name, {}, V))
    estimators = [ChainRule("left_to_right")] if name == "ar" else [ChainRule("left_to_right"), ImportanceWeighted(3)]
    for estimator in estimators:
        scores = Scorer(whole, estimator, draws=2, batch=7).score(worlds_requests(given))
        assert torch.allclose(
            torch.tensor([s.nats for s in scores], dtype=torch.float64), conditional(given), atol=1e-9
        )


@pytest.mark.parametrize("given", [0, 1, 2])
@pytest.mark.parametrize("name", ["mask_count", "continuous_time"])
def test_bounds_by_count_and_by_time_have_the_conditional_likelihood_as_their_mean(name: str, given: int) -> None:
    """Over all sets of hidden tokens and all counts, or all times (Gauss-Legendre: the integrand is a polynomial): exactly."""
    family, whole = MDLM(V), world(MDLM(V))
    n, mean = 3 - given, torch.zeros(len(TEXTS), dtype=torch.float64)
    nodes = [((x + 1) / 2, w / 2) for x, w in ((-(3**-0.5), 1.0), (3**-0.5, 1.0))]
    for size in range(1, n + 1):
        by_time = sum(w * t ** (size - 1) * (1 - t) ** (n - size) for t, w in nodes)  # 1/t times the chance of the set
        by_count = 1 / size / math.comb(n, size)  # of one set: 1/n, one of its kind, times n / size
        weight = by_count if name == "mask_count" else by_time
        for places in itertools.combinations(range(given, 3), size):
            hide = torch.zeros_like(TEXTS, dtype=torch.bool)
            hide[:, list(places)] = True
            mean += weight * family.hidden_nats(whole.network, TEXTS, hide).sum(1)
    assert torch.allclose(mean, conditional(given), atol=1e-9)


@pytest.mark.parametrize("given", [0, 1, 2])
def test_the_scorer_s_draws_have_that_mean(given: int) -> None:
    """4096 draws of every text, each within 5 of the standard errors that it states; a single token has no noise."""
    scores = Scorer(world(MDLM(V)), build("mask_count", {}, MDLM(V)), draws=4096, batch=4096).score(
        worlds_requests(given)
    )
    for score, truth in zip(scores, conditional(given).tolist(), strict=True):
        assert abs(score.nats - truth) <= 5 * score.error + 1e-6
        assert (score.error < 1e-6) == (given == 2) or given != 2


def test_defaults_are_fixed_in_advance() -> None:
    names = {name: default_estimator(family_of(name, {}, V)).name for name in FAMILIES}
    assert names["ar"] == "chain_rule" and names["mdlm"] == "mask_count"
    assert names["d3pm"] == "discrete_time"  # its times are those of a grid
    assert set(names.values()) == {"chain_rule", "mask_count", "continuous_time", "discrete_time"}


# Text to ids


def merging() -> HuggingFace:
    """Letters, a space, and one merge: `a` and `b` side by side are one token."""
    vocab = {"a": 0, "b": 1, "c": 2, " ": 3, "ab": 4, "<|endoftext|>": 5}
    model = {"type": "BPE", "vocab": vocab, "merges": ["a b"]}
    return HuggingFace(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


def test_pairs_are_encoded_in_one_piece_with_spaces_moved() -> None:
    """lm-eval's rule: spaces at the context's end begin the continuation."""
    tokenizer = merging()
    assert pair(tokenizer, "ca", " ab") == ([2, 0], [3, 4])
    assert pair(tokenizer, "ca ", "ab") == ([2, 0], [3, 4])
    assert pair(tokenizer, "", "ab") == ([], [4])
    assert pair(tokenizer, " ", "ab") == ([], [3, 4])


def test_a_token_across_the_cut_is_encoded_apart() -> None:
    """In one piece `a` + `b` is one token: nothing would be left of the continuation, and its likelihood would be 1."""
    assert pair(merging(), "ca", "b") == ([2, 0], [1])
    assert pair(merging(), "ca", "bc") == ([2, 0], [1, 2])


def test_what_cannot_be_scored_is_an_error_and_not_a_score() -> None:
    with pytest.raises(UserError, match="here has an empty continuation"):
        pair(Bytes(), "context", "", "here")
    with pytest.raises(UserError, match=r"here has 60 tokens of context and 5 .* reads 64: --truncate"):
        fitted([1] * 60, [2] * 5, "q", 64, False, "here")
    with pytest.raises(UserError, match="here has a continuation of 65 tokens"):
        fitted([1], [2] * 65, "q", 64, True, "here")
    for name in ("draws", "batch"):
        with pytest.raises(UserError, match=f"{name} must be at least 1"):
            scorer_of(model("mdlm"), **{name: 0})


def test_a_long_context_loses_its_left_end_when_that_is_allowed() -> None:
    request = fitted(list(range(60)), [7] * 5, "q", 64, True)
    assert request.context == tuple(range(1, 60)) and request.cut == 1 and request.continuation == (7,) * 5


def test_trailing_text_is_not_seen() -> None:
    """A score is of the continuation given the context; what another request goes on with changes nothing."""
    whole = model("mdlm")
    short, long = Request((1, 2), (3,), "q"), Request((1, 2), (3, 4, 5), "q")
    assert scorer_of(whole).score([short])[0].nats == pytest.approx(
        scorer_of(whole).score([long, short])[1].nats, rel=1e-9
    )
