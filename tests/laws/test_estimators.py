"""Estimators of the likelihood, by enumeration: of orders, of subsets, of paths; with exact, wrong and random networks."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from redraft.cli import main
from redraft.errors import UserError
from redraft.evaluation.likelihood import estimators
from redraft.evaluation.likelihood.estimators import (
    ESTIMATORS,
    ImportanceWeighted,
    MaskCount,
    build,
    chain_nats,
    regrouped,
)
from redraft.evaluation.likelihood.nelbo import bound, draw_nats, estimate
from redraft.families.base import DiffusionFamily, Family
from redraft.families.base import build as family_of
from redraft.families.esolm import EsoLM
from redraft.families.mdlm import MDLM
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out
from redraft.types import Attention, Batch, Network, View
from tests.laws.cases import CASES, HYBRID, WITH_CLOCK, Case
from tests.laws.test_bound import Wrong, expected_diffusion_nelbo, expected_esolm_nelbo
from tests.laws.test_sampling import small_network
from tests.rounding import CLOSE
from tests.small_runs import corpus, tiny
from tests.world import ENTROPY, TEXTS, Exact, L, Oracle, P, V, batch_of, states

KEY = Key.of(5)
ORDERS = list(itertools.permutations(range(L)))
FIXED = ("left_to_right", "random", "generative")  # orders that do not depend on the text
MASKED = MDLM(V)
ESOLM = [EsoLM(V, alpha_0) for alpha_0 in (0.0, 0.3, 1.0)]
ORDERED: list[MDLM | EsoLM] = [MASKED, *ESOLM]
pytestmark = pytest.mark.filterwarnings("error")


def label(family: Family) -> str:
    return f"{family.name}{getattr(family, 'alpha_0', '')}"


NETWORKS: dict[str, Network] = {"wrong": Wrong(Exact()), "transformer": small_network()}


def generation_law(family: MDLM | EsoLM) -> Tensor:
    """Probability of each of ORDERS: by diffusion (random order) with probability alpha_0, the rest left to right."""
    alpha_0 = family.alpha_0 if isinstance(family, EsoLM) else 1.0
    law = torch.zeros(len(ORDERS), dtype=torch.float64)
    for early in itertools.product((True, False), repeat=L):
        chosen, rest = [i for i in range(L) if early[i]], [i for i in range(L) if not early[i]]
        chance = alpha_0 ** len(chosen) * (1 - alpha_0) ** len(rest) / math.factorial(len(chosen))
        for head in itertools.permutations(chosen):
            law[ORDERS.index((*head, *rest))] += chance
    return law


@torch.no_grad()
def by_order(family: MDLM | EsoLM, network: Network) -> Tensor:
    """-log p(x | order) of every text in every order, [27, 6]."""
    rows = [torch.tensor(order).expand_as(TEXTS) for order in ORDERS]
    return torch.stack([chain_nats(network, family, batch_of(TEXTS), order) for order in rows], 1)


def expected_weighted(nats: Tensor, law: Tensor, k: int) -> float:
    """E -log mean p over all k-tuples of independent draws with values `nats` [27, R] and probabilities `law` [R or 27, R]."""
    total = torch.zeros(len(TEXTS), dtype=torch.float64)
    law = law.expand(nats.shape)
    for draw in itertools.product(range(nats.shape[1]), repeat=k):
        pick = list(draw)
        total += law[:, pick].prod(1) * regrouped(nats[:, pick], k)[:, 0]
    return float((P * total).sum())


def exact_nll(nats: Tensor, law: Tensor) -> float:
    return -float((P * (law.log() - nats).logsumexp(-1)).sum())


# The chain rule, and orders


@pytest.mark.parametrize("family", ORDERED, ids=label)
def test_chain_rule_with_the_exact_network_is_the_entropy_in_every_order(family: MDLM | EsoLM) -> None:
    assert torch.allclose((P[:, None] * by_order(family, Exact())).sum(0), torch.tensor(ENTROPY).double(), atol=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("family", ORDERED, ids=label)
def test_chain_rule_is_a_distribution_over_texts_in_every_order(family: MDLM | EsoLM, network: str) -> None:
    assert torch.allclose((-by_order(family, NETWORKS[network])).logsumexp(0), torch.zeros(6).double(), atol=1e-9)


@pytest.mark.parametrize("order", ORDERS)
def test_one_pass_of_esolm_equals_a_pass_for_each_token(order: tuple[int, ...]) -> None:
    network, slow = small_network(), torch.zeros(len(TEXTS), dtype=torch.float64)
    with torch.no_grad():
        for rank, place in enumerate(order):
            seen = torch.cat([TEXTS[:, list(order[:rank])], torch.full((len(TEXTS), 1), V)], 1)
            hidden = network.trunk(View(seen, torch.tensor([order[: rank + 1]]), Attention.CAUSAL))[:, -1]
            slow += network.nats(hidden, TEXTS[:, place])
    assert torch.allclose(by_order(ESOLM[1], network)[:, ORDERS.index(order)], slow, atol=1e-9)


@pytest.mark.parametrize("family", ORDERED, ids=label)
def test_drawn_orders_have_the_law_of_generation(family: MDLM | EsoLM) -> None:
    """2^14 draws, each frequency within 5 standard errors; an order that cannot be is never drawn."""
    n, law = 2**14, generation_law(family)
    noise = counter_rng.field(KEY, torch.arange(n), L)
    drawn = family.orders(torch.ones(n, L, dtype=torch.bool), noise)
    seen = torch.stack([(drawn == torch.tensor(order)).all(1).double().mean() for order in ORDERS])
    assert float(law.sum()) == pytest.approx(1)
    assert ((seen - law).abs() <= 5 * (law * (1 - law) / n).sqrt()).all()


@pytest.mark.parametrize("family", ORDERED, ids=label)
def test_given_tokens_come_first_and_are_not_paid_for(family: MDLM | EsoLM) -> None:
    """With the exact network, the conditional entropy of the last two tokens given the first, from any estimator."""
    scored = torch.tensor([[False, True, True]]).expand_as(TEXTS)
    first = torch.stack([P[TEXTS[:, 0] == v].sum() for v in range(V)])
    conditional = ENTROPY + float((first * first.log()).sum())
    batch = replace(batch_of(TEXTS), scored=scored)
    assert (family.orders(scored, counter_rng.field(KEY, batch.index, L))[:, 0] == 0).all()
    for estimator in (*map(estimators.ChainRule, FIXED), ImportanceWeighted(3)):
        nats = estimator.nats(Exact(), family, batch, draws=1, key=KEY)
        assert float((P * nats).sum()) == pytest.approx(conditional, abs=1e-9)


@pytest.mark.parametrize("alpha_0", [0.0, 1.0])
def test_chain_rule_of_esolm_at_its_ends(alpha_0: float) -> None:
    """alpha_0 = 0 generates left to right, whose nelbo is exact; alpha_0 = 1 in random orders."""
    family, network, batch = EsoLM(V, alpha_0), small_network(), batch_of(TEXTS)
    with torch.no_grad():
        own = family.nelbo(network, batch, key=KEY).nats.double().sum(1)
        straight = estimators.ChainRule().nats(network, family, batch, draws=1, key=KEY)
        orders = [estimators.ChainRule(o).nats(network, family, batch, draws=1, key=KEY) for o in FIXED[1:]]
    assert torch.allclose(own, straight, **CLOSE) == (alpha_0 == 0)
    assert torch.allclose(*orders) == (alpha_0 == 1)


# Importance-weighted over orders


@pytest.mark.parametrize("network", NETWORKS)
def test_mdlm_bound_is_one_order_and_falls_to_the_exact_likelihood(network: str) -> None:
    """NELBO = IW_1 >= IW_2 >= IW_3 >= -log of the mean over all orders, all enumerated, strictly for these networks."""
    nats, law = by_order(MASKED, NETWORKS[network]), generation_law(MASKED)
    with torch.no_grad():
        nelbo = expected_diffusion_nelbo(MASKED, NETWORKS[network], 8)
    ladder = [*(expected_weighted(nats, law, k) for k in (1, 2, 3)), exact_nll(nats, law)]
    assert ladder[0] == pytest.approx(nelbo, abs=1e-9)
    assert all(looser > tighter + 1e-6 for looser, tighter in itertools.pairwise(ladder))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("family", ESOLM[1:], ids=label)
def test_esolm_bounds_fall_to_the_exact_likelihood(family: EsoLM, network: str) -> None:
    nats, law = by_order(family, NETWORKS[network]), generation_law(family)
    ladder = [*(expected_weighted(nats, law, k) for k in (1, 2, 3)), exact_nll(nats, law)]
    assert all(looser > tighter + 1e-6 for looser, tighter in itertools.pairwise(ladder))


@pytest.mark.parametrize("family", ESOLM, ids=label)
def test_esolm_bound_is_one_order_for_a_network_blind_to_masks(family: EsoLM) -> None:
    network = Wrong(Exact())
    one = expected_weighted(by_order(family, network), generation_law(family), 1)
    assert one == pytest.approx(expected_esolm_nelbo(family, network), abs=1e-9)


def test_esolm_diffusion_bound_is_of_a_network_that_sees_masks() -> None:
    """In the diffusion phase a mask also attends to the masks before it, which a token written alone does not: so for a
    Transformer the two bounds are of two models, and neither need be the larger."""
    family, network = EsoLM(V, 1.0), small_network()
    mean = torch.zeros(len(TEXTS), dtype=torch.float64)
    with torch.no_grad():
        for order in itertools.permutations(range(L)):  # clean tokens, then masks: a random order cut at `clean`
            for clean in range(L):
                places = torch.tensor(order).expand_as(TEXTS)
                z = TEXTS.scatter(1, places[:, clean:], V)
                mean += family.diffusion_nats(network, z, TEXTS, places).sum(1) / (L - clean) / math.factorial(L)
    one = expected_weighted(by_order(family, network), generation_law(family), 1)
    assert abs(float((P * mean).sum()) - one) > 1e-4


@pytest.mark.parametrize("family", ORDERED, ids=label)
def test_more_orders_regroup_the_same_draws(family: MDLM | EsoLM) -> None:
    """k orders a draw are k draws of one order each, so on any draws the estimate falls with k (Jensen)."""
    network, texts = small_network(), TEXTS[::5].numpy()
    one = draw_nats(network, family, texts, ImportanceWeighted(1), 12, 64)
    means = [float(one.mean())]
    for k in (2, 4, 12):
        many = draw_nats(network, family, texts, ImportanceWeighted(k), 12 // k, 64)
        if estimators.ImportanceWeighted(k).random(family):
            assert torch.allclose(many, regrouped(one, k), atol=1e-9)
        means.append(float(many.mean()))
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(means))


# Counts of hidden tokens


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 24, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16])
def test_counts_are_exactly_uniform_and_evenly_spread(n: int, count: int) -> None:
    """Offsets at the midpoints of a grid fine enough to hit every cell equally: each draw takes each count equally often;
    and for any offset, the draws take each count floor or ceil of count / n times."""
    cells = n * count
    offset = ((torch.arange(cells, dtype=torch.float64) + 0.5) / cells)[:, None].expand(-1, count)
    got = estimators.stratified_count(offset, torch.arange(count).expand(cells, -1), count, torch.full((1, 1), n))
    each = (got[..., None] == torch.arange(1, n + 1)).sum(0)  # [draws, n]
    assert (each == count).all()
    spread = (got[..., None] == torch.arange(1, n + 1)).sum(1)
    assert int(spread.min()) >= count // n and int(spread.max()) <= math.ceil(count / n)


@pytest.mark.parametrize("network", NETWORKS)
def test_mask_count_has_the_expectation_of_the_continuous_time_bound(network: str) -> None:
    """Every count and every subset of that size, against every corrupted state and a quadrature over time."""
    total = 0.0
    with torch.no_grad():
        for count in range(1, L + 1):
            subsets = list(itertools.combinations(range(L), count))
            for subset in subsets:
                hide = torch.zeros_like(TEXTS, dtype=torch.bool)
                hide[:, list(subset)] = True
                nats = MASKED.hidden_nats(NETWORKS[network], TEXTS, hide).double().sum(1)
                total += float((P * nats).sum()) * L / count / len(subsets) / L
        nelbo = expected_diffusion_nelbo(MASKED, NETWORKS[network], 8)
    assert total == pytest.approx(nelbo, abs=1e-9)


def test_mask_count_hides_each_subset_equally_often() -> None:
    """2^14 draws of one text: each count exactly a third (to one), each subset within 5 standard errors of its share."""
    n, seen = 2**14, []

    class Watched(Oracle):
        def trunk(self, view: View) -> Tensor:
            seen.append(view.tokens == V)
            return torch.zeros(*view.tokens.shape, V)

    batch = Batch(TEXTS[:1].expand(n, -1), torch.ones(n, L, dtype=torch.bool), torch.arange(n))
    MaskCount().nats(Watched(), MASKED, batch, draws=n, key=KEY)
    size = seen[0].sum(1)
    for count in range(1, L + 1):
        of_size = seen[0][size == count]
        assert abs(len(of_size) - n / L) <= 1
        for subset in itertools.combinations(range(L), count):
            hit = (of_size.nonzero()[:, 1].view(-1, count) == torch.tensor(subset)).all(1).sum().item()
            share = 1 / math.comb(L, count)
            assert abs(hit - len(of_size) * share) <= 5 * math.sqrt(len(of_size) * share * (1 - share))


def test_mask_count_has_no_variance_where_all_tokens_cost_the_same() -> None:
    class Constant(Oracle):
        def trunk(self, view: View) -> Tensor:
            return torch.zeros(*view.tokens.shape, V, dtype=torch.float64)

    nats = MaskCount().nats(Constant(), MASKED, batch_of(torch.zeros(42, 11, dtype=torch.int64)), draws=7, key=KEY)
    assert torch.allclose(nats, torch.tensor(11 * math.log(V), dtype=torch.float64), atol=1e-9)


# Paths


@torch.no_grad()
def chain_nll(family: DiffusionFamily, network: Network, steps: int) -> Tensor:
    """-log p of each text under the T-step chain, by transition matrices over all K^L states."""
    q, prior = estimators.path_start(family, TEXTS[:1])
    seen = states(q.shape[-1])
    p = prior.expand(len(seen), -1, -1).gather(-1, seen[..., None]).prod(1)[:, 0]
    for t, s in itertools.pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64)):
        at, to = t.expand(len(seen), 1), s.expand(len(seen), 1)
        step = family.posterior(family.log_p(network, seen, at, None).double().exp(), seen, at, to)  # [S, L, K]
        p = p @ torch.stack([step[:, torch.arange(L), state].prod(1) for state in seen], 1)
    where = [int((seen == text).all(1).nonzero()) for text in TEXTS]
    return -p[where].log()


@torch.no_grad()
def paths(family: DiffusionFamily, network: Network, steps: int) -> tuple[Tensor, Tensor]:
    """Probability under q and -log w of every path, [27, S^T] each; a path that q cannot take has weight as if 1."""
    x0 = TEXTS
    q, prior = estimators.path_start(family, x0)
    seen = states(q.shape[-1])
    chance, nats = (torch.stack([gathered(a, s) for s in seen], 1) for a in (q, prior))  # [27, S]
    nats = torch.where(chance > 0, chance.log() - nats.log(), 0.0)[..., None]
    chance = chance[..., None]  # [27, S, paths to S]
    for t, s in itertools.pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]):
        chance, nats = extended(family, network, seen, seen, chance, nats, float(t), float(s))
    return arrived(family, network, seen, chance, nats, 1 / steps)


def gathered(p: Tensor, state: Tensor) -> Tensor:
    """[27, L, K] -> probability of one state of all tokens, [27]."""
    return p[:, torch.arange(L), state].prod(1)


def extended(
    family: DiffusionFamily,
    network: Network,
    seen: Tensor,
    to: Tensor,
    chance: Tensor,
    nats: Tensor,
    t: float,
    s: float,
) -> tuple[Tensor, Tensor]:
    at, then = (torch.full((len(TEXTS), 1), u, dtype=torch.float64) for u in (t, s))
    new_chance, new_nats = [], []
    for number, state in enumerate(seen):
        q, p = estimators.path_step(network, family, TEXTS, state.expand_as(TEXTS), at, then)
        step_q, step_p = (
            torch.stack([gathered(a, target) for target in to], 1)[..., None] for a in (q, p)
        )  # [27, S, 1]
        cost = torch.where(step_q > 0, step_q.log() - step_p.log(), 0.0)
        new_chance.append(chance[:, number, None] * step_q)
        new_nats.append(nats[:, number, None] + cost)
    return torch.cat(new_chance, 2), torch.cat(new_nats, 2)


def arrived(
    family: DiffusionFamily, network: Network, seen: Tensor, chance: Tensor, nats: Tensor, t: float
) -> tuple[Tensor, Tensor]:
    """The last step, to the text itself."""
    at, zero = (torch.full((len(TEXTS), 1), u, dtype=torch.float64) for u in (t, 0.0))
    out = []
    for number, state in enumerate(seen):
        q, p = estimators.path_step(network, family, TEXTS, state.expand_as(TEXTS), at, zero)
        reach, own = (a.gather(-1, TEXTS[..., None])[..., 0].prod(1)[:, None] for a in (q, p))
        out.append(nats[:, number] + torch.where(chance[:, number] > 0, reach.log() - own.log(), 0.0))
    return chance.flatten(1), torch.cat(out, 1)


PATH_CASES = [case for case in WITH_CLOCK if case.name in ("mdlm", "duo", "hybrid")]


@pytest.mark.parametrize("case", PATH_CASES, ids=repr)
def test_paths_start_from_the_prior_of_the_family(case: Case) -> None:
    """The law of `family.prior`, whose uniforms are here an even grid."""
    assert isinstance(case.family, DiffusionFamily)
    q, prior = estimators.path_start(case.family, TEXTS)
    grid = (torch.arange(3000, dtype=torch.float64)[:, None] + 0.5) / 3000
    drawn = torch.bincount(case.family.prior(lambda purpose: grid).flatten(), minlength=q.shape[-1]) / 3000
    assert torch.allclose(prior, drawn.double().expand_as(prior), atol=1e-6)
    assert torch.allclose(q.sum(-1), torch.ones(()).double())


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "wrong"])
@pytest.mark.parametrize("case", PATH_CASES, ids=repr)
def test_path_weights_average_to_the_likelihood_of_the_chain(case: Case, exact: bool) -> None:
    """E_q w = p(x) for each text, T = 1 and 2; so every number of paths bounds -log p of the T-step chain from above."""
    assert isinstance(case.family, DiffusionFamily)
    network = case.oracle if exact else Wrong(case.oracle)
    for steps in (1, 2):
        chance, nats = paths(case.family, network, steps)
        assert torch.allclose(chance.sum(1), torch.ones(1).double())
        truth = chain_nll(case.family, network, steps)
        assert torch.allclose(-(chance.log() - nats).logsumexp(1), truth, atol=1e-9)


@pytest.mark.parametrize("case", PATH_CASES, ids=repr)
def test_more_paths_tighten_the_bound(case: Case) -> None:
    """One and two paths of the T = 2 chain, enumerated: IW_1 > IW_2 > -log p, text by text."""
    assert isinstance(case.family, DiffusionFamily)
    few = [0, 13, 22]
    chance, nats = (part[few] for part in paths(case.family, Wrong(case.oracle), 2))
    truth = chain_nll(case.family, Wrong(case.oracle), 2)[few]
    for c, n, exact in zip(chance, nats, truth, strict=True):
        c, n = c[c > 0], n[c > 0]
        two = (c[:, None] * c * (math.log(2) - torch.logaddexp(-n[:, None], -n))).sum()
        assert (c * n).sum() > two > exact


@pytest.mark.parametrize("case", PATH_CASES, ids=repr)
def test_drawn_paths_have_the_enumerated_moments(case: Case) -> None:
    """The estimator itself, T = 2: over 2^13 paths of each of three texts, the mean of -log w, and the mean of w (so the
    bound with k = 2^13), within 5 of their enumerated standard errors."""
    assert isinstance(case.family, DiffusionFamily)
    network, n, few = Wrong(case.oracle), 2**13, [0, 13, 22]
    chance, nats = (part[few] for part in paths(case.family, network, 2))
    tokens = TEXTS[few].repeat_interleave(n, 0)
    drawn = estimators.PathWeighted(1, 2).nats(network, case.family, batch_of(tokens), draws=n, key=KEY).view(3, n)
    for value in (lambda a: a, lambda a: (-a).exp()):
        mean = (chance * value(nats)).sum(1)
        error = ((chance * value(nats) ** 2).sum(1) - mean**2).clamp(min=0).sqrt() / math.sqrt(n)
        assert ((value(drawn).mean(1) - mean).abs() <= 5 * error + 1e-12).all()
    k = estimators.PathWeighted(64, 2).nats(network, case.family, batch_of(TEXTS[few]), draws=1, key=KEY)
    index = torch.arange(3)[:, None] * 64 + torch.arange(64)
    row = Batch(TEXTS[few].repeat_interleave(64, 0), torch.ones(192, L, dtype=torch.bool), index.flatten())
    one = estimators.PathWeighted(1, 2).nats(network, case.family, row, draws=1, key=KEY)
    assert torch.allclose(k, regrouped(one.view(3, 64), 64)[:, 0])


def test_one_path_of_many_steps_nears_the_continuous_time_bound() -> None:
    """Duo and MDLM, exactly: E -log w adds over steps, so x_t from its marginal and the KL of each step is all it takes.
    Its distance from the continuous bound falls as 1/T."""
    for case in (c for c in PATH_CASES if c.name in ("mdlm", "duo")):
        assert isinstance(case.family, DiffusionFamily)
        network = Wrong(case.oracle)
        limit = expected_diffusion_nelbo(case.family, network, 60)
        far, near = (abs(expected_one_path(case.family, network, steps) - limit) for steps in (16, 64))
        assert near < far / 3 or near < 1e-9


def expected_one_path(family: DiffusionFamily, network: Network, steps: int) -> float:
    q, prior = estimators.path_start(family, TEXTS)
    seen, total = states(q.shape[-1]), torch.xlogy(q, q / prior.clamp(min=1e-300)).sum((1, 2))
    text, state = TEXTS.repeat_interleave(len(seen), 0), seen.repeat(len(TEXTS), 1)
    for t, s in itertools.pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64)):
        at, then = (u.expand(len(text), 1) for u in (t, s))
        q, p = estimators.path_step(network, family, text, state, at, then)
        kl = torch.xlogy(q, q / p.clamp(min=1e-300)).sum((1, 2))
        reach = family.marginal(text, at).gather(-1, state[..., None]).prod(1)[:, 0]
        total = total + torch.where(reach > 0, reach * kl, 0.0).view(len(TEXTS), -1).sum(1)
    return float((P * total).sum())


# All of them


SCORERS = [
    (case, name)
    for case in [*CASES, HYBRID]
    for name, kind in ESTIMATORS.items()
    if kind().refusal(case.family) is None
]
SMALL = {"importance_weighted": {"k": 3}, "path_weighted": {"k": 3, "steps": 4}}


@pytest.mark.parametrize(("case", "name"), SCORERS, ids=str)
def test_exact_denoisers_score_the_entropy_or_more(case: Case, name: str) -> None:
    """Over draws of texts: the entropy within 5 standard errors. A chain of few steps writes tokens at once, as if they
    were independent, and so scores above it."""
    estimator = build(name, SMALL.get(name, {}), case.family)
    n = 2**11
    text = torch.multinomial(P, n, replacement=True, generator=torch.Generator().manual_seed(2))
    nats = estimator.nats(case.oracle, case.family, batch_of(TEXTS[text]), draws=1, key=KEY)
    error = 5 * float(nats.std()) / math.sqrt(n) + 1e-4
    assert float(nats.mean()) > ENTROPY - error
    assert name == "path_weighted" or float(nats.mean()) < ENTROPY + error


@pytest.mark.parametrize(("case", "name"), [(c, n) for c, n in SCORERS if c is not HYBRID], ids=str)
def test_an_estimate_does_not_depend_on_the_batch_size(case: Case, name: str) -> None:
    estimator, network = build(name, SMALL.get(name, {}), case.family), small_network()
    windows = np.random.default_rng(0).integers(0, V, (2, 7))
    one, other = (draw_nats(network, case.family, windows, estimator, 2, batch) for batch in (1, 64))
    assert one.shape == (2, 2 if estimator.random(case.family) else 1)
    assert torch.allclose(one, other, **CLOSE)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_bound_is_the_continuous_time_estimator(case: Case) -> None:
    network, windows = small_network(), np.random.default_rng(0).integers(0, V, (5, 7))
    assert bound(network, case.family, windows, 3, 4) == estimate(
        network, case.family, windows, estimators.ContinuousTime(), 3, 4
    )


@pytest.mark.parametrize(
    ("family", "name", "options", "message"),
    [
        ("duo", "mask_count", {}, "'mask_count' cannot score family 'duo'.*Try: continuous_time, path_weighted"),
        ("ar", "importance_weighted", {}, "Try: continuous_time, chain_rule"),
        ("duo", "chain_rule", {}, "writes no token after another.*Try: continuous_time, path_weighted"),
        ("esolm", "path_weighted", {}, "no clock.*Try: continuous_time, chain_rule, importance_weighted"),
        ("ar", "chain_rule", {"order": "random"}, "one order: left_to_right, not random"),
        (
            "bd3lm",
            "chain_rule",
            {"order": "random"},
            "not write in uniformly random orders.*Try: .*chain_rule, importance",
        ),
        ("bd3lm", "mask_count", {}, "Try: continuous_time, chain_rule, importance_weighted"),
        ("mdlm", "importance", {}, "unknown estimator 'importance'.*Did you mean 'importance_weighted'"),
        ("mdlm", "chain_rule", {"order": "left"}, "unknown order 'left'.*left_to_right"),
        ("mdlm", "chain_rule", {"order": "margin", "k": 0}, "k must be at least 1, got 0"),
        ("sedd", "chain_rule", {"order": "margin"}, "reads the time, so it cannot choose.*Try: continuous_time"),
        ("esolm", "chain_rule", {"order": "entropy"}, "hide tokens behind a mask.*Try: continuous_time, chain_rule"),
        ("ar", "chain_rule", {"k": 2}, "hide tokens behind a mask.*so it cannot choose"),
        ("mdlm", "mask_count", {"k": 4}, "'mask_count' takes no k: it takes no settings"),
        ("mdlm", "importance_weighted", {"k": 0}, "k must be at least 1, got 0"),
    ],
)
def test_impossible_pairs_are_refused_in_a_line_that_says_what_works(
    family: str, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        kind, _, schedule = family.partition("-")
        build(name, options, family_of(kind, {"schedule": schedule} if schedule else {}, V))
    assert "\n" not in str(refused.value)


def test_eval_writes_the_estimator_and_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    for _ in carry_out(open_run(tiny(corpus(tmp_path / "prose"), budget={"steps": 4}), run), run):
        pass
    command = ["eval", str(run), "--rows", "3", "--draws", "2", "--estimator"]
    for name, flags, settings in (
        ("importance_weighted", ["--k", "3"], {"k": 3}),
        ("chain_rule", ["--order", "random"], {"order": "random"}),
        ("path_weighted", ["--k", "2", "--steps", "3"], {"k": 2, "steps": 3}),
        ("mask_count", [], {}),
    ):
        main([*command, name, *flags, "--json"])
        result = json.loads(capsys.readouterr().out)
        assert result["estimator"] == {"name": name, **settings} and result["draws"] == 2 and not result["exact"]
    main([*command, "importance_weighted"])
    assert "nats/token by importance_weighted k=16 (a bound" in capsys.readouterr().out
    main([*command, "chain_rule", "--order", "margin", "--k", "3", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["estimator"] == {"name": "chain_rule", "order": "margin", "k": 3} and result["exact"]
    for flags, message in (
        (["--steps", "3"], "takes no steps: it takes order and k"),
        (["--order", "random", "--k", "3"], "k is for the orders confidence, margin, entropy, left_to_right"),
        (["--order", "marginal"], "unknown order 'marginal'. Did you mean 'margin'"),
    ):
        with pytest.raises(SystemExit):
            main([*command, "chain_rule", *flags])
        assert message in capsys.readouterr().err
