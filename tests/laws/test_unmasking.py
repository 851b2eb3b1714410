"""The likelihood under deterministic unmasking policies (DUEL), by enumeration of every text, path and draw."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from redraft.evaluation.likelihood.estimators import ChainRule, chain_nats
from redraft.evaluation.likelihood.unmasking import POLICIES, next_positions, policy_nats
from redraft.families.mdlm import MDLM
from redraft.noise.counter_rng import Key
from redraft.sampling import low_confidence
from redraft.sampling.base import Denoiser, Prediction
from redraft.sampling.low_confidence import LowConfidence
from redraft.types import Canvas, Network, View, last
from tests.laws.test_bound import Wrong
from tests.laws.test_sampling import small_network
from tests.world import ENTROPY, TEXTS, Exact, L, P, V, batch_of

FAMILY = MDLM(V)
NETWORKS: dict[str, Network] = {"exact": Exact(), "wrong": Wrong(Exact()), "transformer": small_network()}
EVERY = pytest.mark.parametrize(("policy", "k"), list(itertools.product(POLICIES, (1, 2, 3))))


@torch.no_grad()
def log_p(network: Network, policy: str, k: int) -> Tensor:
    """Of every text, [27]."""
    return -policy_nats(network, FAMILY, batch_of(TEXTS), policy, k)


@EVERY
@pytest.mark.parametrize("network", NETWORKS)
def test_probabilities_of_all_texts_sum_to_one(network: str, policy: str, k: int) -> None:
    assert float(log_p(NETWORKS[network], policy, k).exp().sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_order_has_the_true_likelihood_with_the_exact_denoiser(policy: str) -> None:
    assert torch.allclose(log_p(Exact(), policy, 1), P.log(), atol=1e-9)
    assert float(-(P * log_p(Exact(), policy, 2)).sum()) > ENTROPY + 1e-3  # written side by side, as if independent


class Forced:
    """Stands for `categorical`: draws a text's own tokens, and adds up the log-probability of those that are kept."""

    def __init__(self, text: Tensor):
        self.text, self.hidden, self.paid = text, torch.ones(L, dtype=torch.bool), torch.zeros(()).double()

    def __call__(self, log_p: Tensor, u: Tensor) -> Tensor:
        """Rows come in the order of the positions that are hidden."""
        self.log_p = torch.full((L, V), torch.nan, dtype=torch.float64)
        self.log_p[self.hidden] = log_p.double()
        return self.text[self.hidden]

    def settle(self, written: Tensor) -> None:
        now = written & self.hidden
        self.paid = self.paid + self.log_p.gather(1, self.text[:, None])[:, 0][now].sum()
        self.hidden = self.hidden & ~now


def sampled(network: Network, policy: str, k: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The law [27] of what `low_confidence` writes, k tokens a step: its draws replaced by every choice of tokens, with their
    probabilities."""
    law = torch.zeros(len(TEXTS), dtype=torch.float64)
    canvas = Canvas(torch.full((1, L), V), torch.zeros(1, L, dtype=torch.bool))
    for text, wanted in enumerate(TEXTS):
        one = Forced(wanted)
        monkeypatch.setattr(low_confidence.counter_rng, "categorical", one)
        for frame in LowConfidence(L // k, policy)(Denoiser(network, FAMILY), canvas, Key.of(0)):
            one.settle(frame.tokens[0] < V)
        law[text] = one.paid.exp()
    return law


@pytest.mark.parametrize(("policy", "k"), list(itertools.product(low_confidence.CERTAINTIES, (1, 3))))
@pytest.mark.parametrize("network", ["wrong", "transformer"])
@torch.no_grad()
def test_likelihood_is_what_the_sampler_writes(
    network: str, policy: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler's own choice of positions at every step; which token stands at those not chosen changes nothing."""
    law = sampled(NETWORKS[network], policy, k, monkeypatch)
    assert float(law.sum()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(law.log(), log_p(NETWORKS[network], policy, k), atol=1e-6)


@EVERY
@torch.no_grad()
def test_likelihood_is_what_is_generated_step_by_step(policy: str, k: int) -> None:
    """Forward, from the empty canvas: every token that may come at the positions that are chosen, branch by branch."""
    network, family = small_network(), FAMILY
    law = {(V,) * L: 1.0}
    for _ in range(-(-L // k)):
        after: dict[tuple[int, ...], float] = {}
        for z, weight in law.items():
            seen, hidden = torch.tensor([z]), torch.tensor([z]) == V
            belief = Denoiser(network, family).belief(seen, torch.ones(1, 1, dtype=torch.float64))
            places = next_positions(belief, hidden, policy, k)[0].nonzero()[:, 0]
            p = belief(places).double().exp()
            for drawn in itertools.product(range(V), repeat=len(places)):
                new = seen[0].index_copy(0, places, torch.tensor(drawn))
                chance = weight * float(p[torch.arange(len(places)), list(drawn)].prod())
                after[tuple(new.tolist())] = after.get(tuple(new.tolist()), 0.0) + chance
        law = after
    assert torch.allclose(
        torch.tensor([law[tuple(x)] for x in TEXTS.tolist()]).double().log(), log_p(network, policy, k)
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_positions_do_not_depend_on_what_is_hidden(policy: str) -> None:
    """The same tokens revealed: the same positions next, whatever stands behind the masks."""
    chosen: dict[tuple[int, ...], tuple[bool, ...]] = {}

    class Watched(Wrong):
        def trunk(self, view: View) -> Tensor:
            seen.append(view.tokens)
            return super().trunk(view)

    for text in TEXTS:
        seen = list[Tensor]()
        policy_nats(Watched(Exact()), FAMILY, batch_of(text[None]), policy, 1)
        assert len(seen) == L
        for before, then in itertools.pairwise([*seen, text[None]]):
            moved = tuple(((before != then) & (before == V))[0].tolist())
            assert sum(moved) == 1 and chosen.setdefault(tuple(before[0].tolist()), moved) == moved


@pytest.mark.parametrize("policy", POLICIES)
def test_ties_go_to_the_earlier_position(policy: str) -> None:
    flat = Prediction(lambda places: torch.full((len(places), V), 1 / V).log(), V)
    hidden = torch.tensor([[False, True, True, True], [True, False, True, True]])
    chosen = next_positions(flat, hidden, policy, 2)
    assert chosen.tolist() == [[False, True, True, False], [True, False, True, False]]


@torch.no_grad()
def test_rounding_does_not_choose_on_a_canvas_of_masks() -> None:
    """Every position predicts the same there, but for rounding: the first is the first, in a sampler as in a likelihood."""
    sure = torch.tensor([[0.3, 0.3 + 1e-7, 0.3 - 1e-7, 0.2], [0.1, 0.3 - 1e-6, 0.2, 0.3]], dtype=torch.float64)
    assert low_confidence.surest_first(sure).tolist() == [[0, 1, 2, 3], [1, 3, 2, 0]]
    assert low_confidence.surest_first(sure, 0.0).tolist() == [[1, 0, 2, 3], [3, 1, 2, 0]]
    empty = torch.full((1, 24), V)
    belief = Denoiser(small_network(), FAMILY).belief(empty, torch.ones(1, 1, dtype=torch.float64))
    for policy in POLICIES:
        assert next_positions(belief, empty == V, policy, 2)[0].nonzero()[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("policy", POLICIES)
@torch.no_grad()
def test_given_tokens_are_not_paid_for_and_rows_advance_by_themselves(policy: str) -> None:
    """Rows with one, two and three scored tokens in a batch: each as when it is alone, and as many passes as the longest."""
    network, calls = small_network(), 0
    batch = batch_of(TEXTS[3:6])
    scored = torch.tensor([[False, True, False], [True, False, True], [True, True, True]])
    both = policy_nats(network, FAMILY, replace(batch, scored=scored), policy)
    for row in range(3):
        alone = replace(batch_of(TEXTS[3 + row : 4 + row]), scored=scored[row : row + 1])
        assert torch.allclose(policy_nats(network, FAMILY, alone, policy), both[row : row + 1], atol=1e-9)

    class Counted(Wrong):
        def trunk(self, view: View) -> Tensor:
            nonlocal calls
            calls += 1
            return super().trunk(view)

    for k, passes in ((1, 3), (2, 2), (3, 1)):
        calls = 0
        policy_nats(Counted(Exact()), FAMILY, replace(batch, scored=scored), policy, k)
        assert calls == passes == ChainRule(policy, k=k).passes(FAMILY, L)


@torch.no_grad()
def test_one_token_a_step_from_the_left_is_the_chain_rule_in_that_order() -> None:
    order = torch.arange(L).expand_as(TEXTS)
    for network in NETWORKS.values():
        assert torch.allclose(-log_p(network, "left_to_right", 1), chain_nats(network, FAMILY, batch_of(TEXTS), order))


@torch.no_grad()
def test_a_finished_text_is_that_of_the_sampler() -> None:
    """A draw of the sampler has a positive likelihood in its order: nothing of the sampler is outside the sum."""
    canvas = Canvas(torch.full((4, L), V), torch.zeros(4, L, dtype=torch.bool))
    drawn = last(LowConfidence(L, "margin")(Denoiser(small_network(), FAMILY), canvas, Key.of(1))).tokens
    assert policy_nats(small_network(), FAMILY, batch_of(drawn), "margin").isfinite().all()
