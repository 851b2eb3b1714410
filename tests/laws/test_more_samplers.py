"""Laws of first-hitting, analytic, confident, blockwise and block-ordered sampling: as equalities of distributions,
by enumeration, even grids of uniforms, or bit for bit. What holds for every sampler is in test_sampling."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.duo import Duo
from redraft.families.esolm import EsoLM
from redraft.families.mdlm import MDLM
from redraft.network.device import flat_places
from redraft.noise import counter_rng
from redraft.noise.schedules import SCHEDULES
from redraft.registry import SAMPLERS
from redraft.sampling.analytic import tweedie
from redraft.sampling.ancestral import Ancestral
from redraft.sampling.base import Denoiser, Prediction, Sampler, build
from redraft.sampling.first_hitting import FirstHitting
from redraft.sampling.guided import Guided
from redraft.sampling.low_confidence import EntropyBounded, LowConfidence, within
from redraft.sampling.ordered import Ordered, first_tokens_first, same_offset
from redraft.sampling.psi import Psi
from redraft.sampling.semi_autoregressive import SemiAutoregressive
from redraft.types import Canvas, View
from tests.laws.cases import CASES, Case
from tests.laws.test_chain import at, clocked
from tests.laws.test_sampling import KEY, N, blank, sampling_bound, small_network, total_variation
from tests.world import TEXTS, Exact, L, Oracle, P, V

MDLM_CASE = next(case for case in CASES if case.name == "mdlm")
ONE_EACH = [case for case in CASES if case.name in ("mdlm", "duo")]


def frames(sampler: Sampler, denoiser: Denoiser, canvas: Canvas) -> list[Tensor]:
    with torch.no_grad():
        return [frame.tokens for frame in sampler(denoiser, canvas, KEY)]


# --- first-hitting, analytic, greedy tail -------------------------------------------------------------------------------


class Opinionated(Oracle):
    """Conditionals that fit no joint law, so that the order of writing matters."""

    def trunk(self, view: View) -> Tensor:
        return 2.5 * Exact().trunk(view).clamp(min=-20)


def order_averaged(oracle: Oracle) -> Tensor:
    """[27]: the mean over all orders of the product of conditionals."""
    family, total = MDLM(V), torch.zeros(len(TEXTS), dtype=torch.float64)
    for order in itertools.permutations(range(L)):
        nats, seen = torch.zeros(len(TEXTS), dtype=torch.float64), torch.full_like(TEXTS, V)
        for place in order:
            log_p = oracle.trunk(family.view(seen, at(0.0)))[:, place].log_softmax(-1)
            nats = nats + log_p.gather(-1, TEXTS[:, place, None])[:, 0]
            seen[:, place] = TEXTS[:, place]
        total += nats.exp() / math.factorial(L)
    return total


def test_first_hitting_is_the_average_over_orders() -> None:
    """The limit of ancestral sampling for any network, not only for a consistent one; one call a token."""
    law, denoiser = order_averaged(Opinionated()), Denoiser(Opinionated(), MDLM(V))
    tokens = frames(FirstHitting(), denoiser, blank(N))[-1]
    assert total_variation(tokens, law) < sampling_bound(law, N) < total_variation(tokens, P)
    assert (denoiser.calls, denoiser.rows) == (L, L * N)


def test_first_hitting_writes_one_token_of_each_row_a_call_in_an_order_of_its_own() -> None:
    fixed = torch.rand(40, 12, generator=torch.Generator().manual_seed(0)).lt(0.4)
    seen = frames(FirstHitting(), Denoiser(small_network(), MDLM(V)), Canvas(torch.zeros(40, 12).long(), fixed))
    left = (~fixed).sum(1)
    assert len(seen) == int(left.max())
    for number, tokens in enumerate(seen, 1):
        assert torch.equal((tokens == V).sum(1), (left - number).clamp(min=0))
    firsts = (seen[0] != V) & ~fixed
    assert len(set(firsts.long().argmax(1).tolist())) > 4


def test_analytic_step_is_the_definition_and_the_ancestral_posterior() -> None:
    """Tweedie's step with MDLM's score, term by term at finite sigma; the posterior at every time, 1 and 0 included."""
    p0 = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)
    for schedule in (SCHEDULES["linear"](), SCHEDULES["cosine"]()):
        family = MDLM(V, schedule=schedule)
        for t, s in ((1.0, 0.9), (0.6, 0.2), (0.3, 0.0)):
            alpha_t, alpha_s = (schedule(at(u))[0][0] for u in (t, s))
            fast = tweedie(p0, alpha_t, alpha_s)[0]
            assert torch.allclose(fast, family.posterior(p0[None], torch.tensor([[V]]), at(t), at(s))[0, 0], atol=1e-12)
            if alpha_t > 0:
                assert torch.allclose(fast, _tweedie_by_score(p0[0], float(alpha_t), float(alpha_s)), atol=1e-9)


def _tweedie_by_score(p0: Tensor, alpha_t: float, alpha_s: float) -> Tensor:
    sigma, d = -math.log(alpha_t), math.log(alpha_s / alpha_t)
    score = torch.cat([p0 / math.expm1(sigma), torch.ones(1).double()])
    stag = math.exp(d) * score
    stag[V] += (1 - math.exp(d)) * score.sum()
    trans = torch.full((V + 1,), 1 - math.exp(-d)).double()
    trans[V] += math.exp(-d)
    return stag * trans / (stag * trans).sum()


@pytest.mark.parametrize("case", ONE_EACH, ids=repr)
def test_greedy_tail_ends_on_the_likeliest_tokens(case: Case) -> None:
    """All but the last frame are ancestral's; the last is the argmax of the prediction, of every token or of the hidden."""
    network, canvas, family = small_network(), blank(8, 11), clocked(case)
    ancestral = frames(Psi(6, kappa=1.0), Denoiser(network, family), canvas)
    greedy = frames(build("greedy_tail", {"steps": 6}, family), Denoiser(network, family), canvas)
    assert all(map(torch.equal, ancestral[:-1], greedy[:-1]))
    with torch.no_grad():
        best = family.log_p(network, greedy[-2], torch.full((8,), 1 / 6).double(), None).argmax(-1)
    assert torch.equal(greedy[-1], best)


# --- confident, entropy-bounded -----------------------------------------------------------------------------------------


def test_confident_writes_as_many_as_smdm() -> None:
    """Per row: top int(hidden (1 - s/t)) on linspace(1, 0), all at the last step; rows differ and none is stranded."""
    steps, length = 5, 23
    fixed = torch.arange(length) < torch.arange(0, 24, 3)[:, None]
    canvas = Canvas(torch.zeros(len(fixed), length).long(), fixed)
    denoiser = Denoiser(small_network(), MDLM(V))
    hidden, before = (~fixed).sum(1), canvas.tokens.masked_fill(~fixed, V)
    for number, tokens in enumerate(frames(LowConfidence(steps), denoiser, canvas)):
        ratio = (steps - number - 1) / (steps - number)
        hidden = torch.tensor([n - int(n * (1 - ratio) + 1e-9) for n in hidden.tolist()])
        assert torch.equal((tokens == V).sum(1), hidden)
        assert torch.equal(tokens[before != V], before[before != V])
        before = tokens
    assert int(hidden.sum()) == 0 and denoiser.calls == steps


def test_confident_calls_the_network_only_in_steps_that_write() -> None:
    denoiser = Denoiser(small_network(), MDLM(V))
    assert len(frames(LowConfidence(50), denoiser, blank(3, 8))) == 50
    assert denoiser.calls == 8


@pytest.mark.parametrize("order", ["top_probability", "confidence", "margin", "entropy"])
def test_confident_writes_the_surest_position_first(order: str) -> None:
    """At temperature 0 the drawn token is the likeliest, yet sureness is the model's own belief, not a tie at one."""
    network, family = small_network(), MDLM(V)
    given = torch.arange(9) % 2 == 0
    canvas = Canvas(torch.randint(0, V, (8, 9), generator=torch.Generator().manual_seed(5)), given.expand(8, -1))
    first = frames(LowConfidence(4, order), Denoiser(network, family, temperature=0), canvas)[0]
    with torch.no_grad():
        p = family.log_p(network, canvas.tokens.where(given, V), None, None)[:, ~given].double().exp()
    best, new = p.sort(-1, descending=True).values, first[:, ~given]
    sure = {
        "top_probability": best[..., 0],
        "confidence": best[..., 0],
        "margin": best[..., 0] - best[..., 1],
        "entropy": (p * p.log()).sum(-1),
    }
    assert torch.equal((new != V).long().argmax(1), sure[order].argmax(1)) and ((new != V).sum(1) == 1).all()
    assert torch.equal(new[new != V], p.argmax(-1)[new != V]) and len(set(sure[order].argmax(1).tolist())) > 1


def test_entropy_bound_is_the_largest_set_within_gamma() -> None:
    """Against every prefix by hand, and no other set of that size or larger fits either: entropies ascend."""
    entropies = torch.rand(200, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort(1).values
    for gamma in (0.0, 0.3, 1.0, 10.0):
        count = within(entropies, gamma)[:, 0]
        for row, n in zip(entropies[:40].tolist(), count[:40].tolist(), strict=True):
            fits = [size for size in range(1, 8) for kept in itertools.combinations(row, size)
                    if sum(kept) - max(kept) <= gamma + 1e-12]  # fmt: skip
            assert n == max(fits)
    assert (within(entropies, 0.0) == 1).all() and (within(entropies, 10.0) == 7).all()


def test_entropy_bounded_runs_from_one_token_a_call_to_all_at_once() -> None:
    fixed = torch.rand(6, 11, generator=torch.Generator().manual_seed(1)).lt(0.3)
    canvas, calls = Canvas(torch.zeros(6, 11).long(), fixed), []
    for gamma in (0.0, 2.0, 100.0):
        denoiser = Denoiser(small_network(), MDLM(V))
        tokens = frames(EntropyBounded(gamma), denoiser, canvas)
        assert (tokens[-1] < V).all() and len(tokens) == denoiser.calls
        calls.append(denoiser.calls)
    assert calls[0] == int((~fixed).sum(1).max()) > calls[1] > calls[2] == 1


def test_guidance_comes_before_temperature() -> None:
    """At temperature 0 a guided sampler takes the argmax of the guided belief, not of two certainties."""
    tokens, t = torch.tensor([[1, V, V]]), torch.ones(1, 1, dtype=torch.float64)
    where, prompt = flat_places(tokens == V), torch.tensor([[True, False, False]])
    warm = Guided(Denoiser(Exact(), MDLM(V)), 3.0, prompt, V)
    cold = Guided(Denoiser(Exact(), MDLM(V), temperature=0), 3.0, prompt, V)
    assert torch.equal(cold(tokens, t)(where).argmax(-1), warm(tokens, t)(where).argmax(-1))
    unguided = Denoiser(Exact(), MDLM(V))(tokens, t)(where)
    assert not torch.allclose(warm(tokens, t)(where), unguided)


# --- blockwise ----------------------------------------------------------------------------------------------------------


INNER = [
    (case, name)
    for case in ONE_EACH
    for name, entry in SAMPLERS.items()
    if name != "semi_autoregressive" and entry.load()().refusal(case.family) is None
]


@pytest.mark.parametrize(("case", "inner"), INNER, ids=str)
def test_one_block_is_the_inner_sampler_bit_for_bit(case: Case, inner: str) -> None:
    canvas = Canvas(torch.ones(5, 9, dtype=torch.int64), torch.arange(9).lt(3).expand(5, -1))
    whole, parts = Denoiser(small_network(), case.family), Denoiser(small_network(), case.family)
    expected = frames(SAMPLERS[inner].load()(), whole, canvas)
    found = frames(SemiAutoregressive(block=9, inner=inner), parts, canvas)
    assert len(expected) == len(found) and all(map(torch.equal, expected, found))
    assert (whole.calls, whole.rows) == (parts.calls, parts.rows)


@pytest.mark.parametrize(("case", "inner"), INNER, ids=str)
def test_blocks_are_written_from_left_to_right(case: Case, inner: str) -> None:
    """BlockDiffusion to come hold the prior they began with, blocks gone by never change."""
    canvas, length, block = blank(4, 10), 10, 4
    prior = case.family.prior(counter_rng.field(KEY, torch.arange(4), length))
    sampler = SemiAutoregressive(steps=9, block=block, inner=inner)
    place, start = torch.arange(length), 0
    before = prior
    for number, part in enumerate(sampler.samplers(length)):
        alone = Canvas(before, ((place // block) != number).expand(4, -1))
        shown = frames(part, Denoiser(small_network(), case.family), alone)
        whole = frames(sampler, Denoiser(small_network(), case.family), canvas)[start : start + len(shown)]
        assert all(map(torch.equal, shown, whole))
        assert torch.equal(shown[-1][:, place // block > number], prior[:, place // block > number])
        before, start = shown[-1], start + len(shown)


@pytest.mark.parametrize("inner", ["ancestral", "first_hitting"])
@pytest.mark.parametrize("block", [1, 2])
def test_blockwise_masked_sampling_follows_the_data(inner: str, block: int) -> None:
    """For a masked family any order of writing is exact; the share of a block's steps bounds the bias of two at once."""
    denoiser = Denoiser(Exact(), MDLM(V))
    tokens = frames(SemiAutoregressive(256, block, inner), denoiser, blank(N))[-1]
    assert total_variation(tokens, P) < sampling_bound(P, N) + L**2 / (2 * 128)
    assert denoiser.rows == N * L


def test_blockwise_shares_its_steps_and_takes_any_inner_sampler() -> None:
    shares = SemiAutoregressive(steps=11, block=3, inner=Psi(kappa=0.5)).samplers(10)
    assert shares == [Psi(steps, kappa=0.5) for steps in (3, 3, 3, 2)]
    assert SemiAutoregressive(block=3, inner="first_hitting").samplers(4) == [FirstHitting()] * 2
    with pytest.raises(UserError, match="steps must be at least 4"):
        SemiAutoregressive(steps=3, block=3).samplers(10)
    assert "does not hide" in str(SemiAutoregressive(inner="low_confidence").refusal(Duo(V)))
    assert SemiAutoregressive().refusal(EsoLM(V)) == "it has no clock"


def test_a_given_token_is_never_predicted() -> None:
    """Rows headed by ancestral sampling: a prompt costs Duo nothing, and MDLM one row a written token."""
    canvas = Canvas(torch.ones(5, 9, dtype=torch.int64), torch.arange(9).lt(3).expand(5, -1))
    asked: list[Tensor] = []

    class Preempted(Denoiser):
        def belief(self, tokens: Tensor, t: Tensor) -> Prediction:
            inner = super().belief(tokens, t)

            def rows_at(places: Tensor) -> Tensor:
                asked.append(places)
                return inner.at(places)

            return Prediction(rows_at, V)

    masked = Preempted(small_network(), MDLM(V))
    frames(Ancestral(4), Preempted(small_network(), Duo(V)), canvas)
    frames(Ancestral(4), masked, canvas)
    assert masked.rows == 5 * 6 and all((places % 9 >= 3).all() for places in asked)


# --- block orders of Eso-LM -----------------------------------------------------------------------------------------------


def test_block_order_writes_the_same_random_offset_of_every_block() -> None:
    steps, length, rows = 4, 14, 30
    step = same_offset(counter_rng.field(KEY, torch.arange(rows), length)("offset"), steps)
    assert torch.equal(step[:, 4:8], step[:, :4]) and torch.equal(step[:, 12:], step[:, :2])
    assert (
        torch.equal(step[:, :4].sort(1).values, torch.arange(4).expand(rows, -1)) and len(step[:, :4].unique(dim=0)) > 8
    )


def test_block_autoregressive_order_is_the_published_one() -> None:
    """A = 2 super-blocks of P = 3 blocks of S = 2: firsts one by one, then all seconds: A (P + S - 1) calls."""
    assert first_tokens_first(12, 2, 2).tolist() == [[0, 3, 1, 3, 2, 3, 4, 7, 5, 7, 6, 7]]
    assert first_tokens_first(5, 1, 1).tolist() == [[0, 1, 2, 3, 4]] == first_tokens_first(5, 5, 1).tolist()
    assert first_tokens_first(5, 2, 2).tolist() == [[0, 2, 1, 3, 5]]


@pytest.mark.parametrize(("options", "calls"), [({"order": "block"}, 3),
                         ({"order": "block_autoregressive", "super_blocks": 2}, 2 * (2 + 3 - 1))], ids=str)  # fmt: skip
def test_block_orders_cost_the_published_calls(options: dict[str, Any], calls: int) -> None:
    denoiser = Denoiser(small_network(), EsoLM(V))
    tokens = frames(Ordered(3, **options), denoiser, blank(4, 12))
    assert len(tokens) == denoiser.calls == calls and (tokens[-1] < V).all() and denoiser.rows == 4 * 12


@pytest.mark.parametrize("order", ["block", "block_autoregressive"])
def test_block_orders_are_exact_where_one_token_is_written_a_call(order: str) -> None:
    """One block as long as the text: one token a call, in random order or left to right."""
    tokens = frames(Ordered(L, order=order), Denoiser(Exact(), EsoLM(V, 0.3)), blank(N))[-1]
    assert total_variation(tokens, P) < sampling_bound(P, N)


@pytest.mark.parametrize("order", ["block", "block_autoregressive"])
def test_block_orders_see_through_the_cache_what_a_full_pass_sees(order: str) -> None:
    """Laws 6 and 7: fixed tokens scattered in the row come first in the order; each call's tokens are, at temperature 0,
    the argmax of one causal pass over the canvas before it."""
    family, network, rows, length = EsoLM(V), small_network(), 4, 10
    fixed = torch.rand(rows, length, generator=torch.Generator().manual_seed(3)).lt(0.3)
    canvas, sampler = Canvas(torch.ones(rows, length, dtype=torch.int64), fixed), Ordered(4, order=order)
    noise = counter_rng.field(KEY, torch.arange(rows), length)
    ranked, before = sampler.schedule(fixed, 1.0, noise)[0], canvas.write(family.prior(noise)).tokens
    for tokens in frames(sampler, Denoiser(network, family, temperature=0), canvas):
        with torch.no_grad():
            best = family.log_p(network, before, None, ranked).argmax(-1)
        written = tokens != before
        assert written.any() and not (written & fixed).any()
        assert torch.equal(tokens[written], best[written])
        before = tokens
    assert (before < V).all()


# --- refusals -----------------------------------------------------------------------------------------------------------

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("ancestral", {"steps": 0}, "steps must be at least 1"),
    ("greedy_tail", {"steps": 0}, "steps must be at least 1"),
    ("analytic", {"steps": -1}, "steps must be at least 1"),
    ("psi", {"kappa": 1.5}, r"kappa must be in \[0, 1\], got 1.5"),
    ("psi", {"kappa": "capp"}, "unknown kappa 'capp'. Did you mean 'cap'"),
    ("psi", {"eta": -0.1}, r"eta must be in \[0, 1\]"),
    ("psi", {"profile": "lop"}, "unknown profile 'lop'. Did you mean 'loop'"),
    ("psi", {"profile": "loop", "high": 0.6}, "high \\+ middle below 1"),
    ("psi", {"profile": "loop", "steps": 2}, "at least 3 steps"),
    ("low_confidence", {"order": "margins"}, "unknown order 'margins'. Did you mean 'margin'"),
    ("entropy_bounded", {"gamma": -1.0}, "gamma must be at least 0 nats"),
    ("entropy_bounded", {"order": "x"}, "unknown order 'x'"),
    ("semi_autoregressive", {"block": 0}, "block must be at least 1 token"),
    ("semi_autoregressive", {"inner": "semi_autoregressive"}, "inner must be a sampler of one block"),
    ("semi_autoregressive", {"inner": "ancestrel"}, "unknown inner sampler 'ancestrel'. Did you mean 'ancestral'"),
    ("ordered", {"order": "blok"}, "unknown order 'blok'. Did you mean 'block'"),
    ("ordered", {"order": "block", "alpha_0": 0.5}, "alpha_0 belongs to order 'random'"),
    ("ordered", {"super_blocks": 2}, "super_blocks"),
]


@pytest.mark.parametrize(("name", "options", "says"), BAD, ids=str)
def test_a_bad_option_is_refused_in_one_line(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        SAMPLERS[name].load()(**options)
    assert "\n" not in str(error.value)
