"""Laws 3, 5, 6, 7 and 8 for samplers and predictions: exact laws, fixed tokens, caches, rows alone and in company."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.ar import AR
from redraft.families.base import Absorbing, DiffusionFamily
from redraft.families.esolm import EsoLM
from redraft.network.device import flat_places
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.registry import FAMILIES, SAMPLERS
from redraft.sampling.base import Denoiser, build, sharpen
from redraft.sampling.guided import Guided
from redraft.sampling.ordered import Ordered, window
from redraft.types import Attention, Batch, Canvas, View
from tests.laws.cases import CASES, HYBRID, WITH_CLOCK, Case, fitting
from tests.rounding import CLOSE, in_float64
from tests.world import TEXTS, L, P, V

KEY = Key.of(3)
N = 8_000


PAIRS = fitting()
EXACT = [(case, name) for case, name in PAIRS if SAMPLERS[name].load().exact]


def sees_prompts(case: Case) -> bool:
    return isinstance(case.family, Absorbing) or not isinstance(case.family, DiffusionFamily)


def steps_option(name: str, steps: int) -> dict[str, int]:
    return {"steps": steps} if "steps" in SAMPLERS[name].options else {}


def finish(case: Case, name: str, canvas: Canvas, steps: int, denoiser: Denoiser | None = None) -> Tensor:
    sampler = build(name, steps_option(name, steps), case.family)
    *_, last = sampler(denoiser or Denoiser(case.oracle, case.family), canvas, KEY)
    return last.tokens


def blank(rows: int, length: int = L) -> Canvas:
    return Canvas(torch.zeros(rows, length, dtype=torch.int64), torch.zeros(rows, length, dtype=torch.bool))


def total_variation(tokens: Tensor, p: Tensor) -> float:
    number = (tokens * torch.tensor([V**2, V, 1])).sum(1)
    return 0.5 * float((torch.bincount(number, minlength=V**L) / len(tokens) - p).abs().sum())


def sampling_bound(p: Tensor, rows: int) -> float:
    """Mean total variation of a perfect sampler, plus 5 of its standard deviations (at most 1 / sqrt(4 rows) each)."""
    return float((p * (1 - p) / (2 * math.pi * rows)).sqrt().sum()) + 5 / math.sqrt(4 * rows)


@pytest.mark.parametrize(("case", "name"), EXACT, ids=str)
def test_exact_samplers_converge_to_the_data(case: Case, name: str) -> None:
    """With S steps two of L tokens move in the same one with probability at most L^2 / (2 S): the bias that is allowed.

    Uniform noise moves a token more than once: its chain's distance to the data is measured by test_chain, 0.011 at 64
    steps and falling with 1/S.
    """
    steps = 256
    allowed = 0.0 if name == "left_to_right" else L**2 / (2 * steps)
    with torch.no_grad():
        tokens = finish(case, name, blank(N), steps)
    assert total_variation(tokens, P) < sampling_bound(P, N) + allowed


@pytest.mark.parametrize(("case", "name"), [pair for pair in EXACT if sees_prompts(pair[0])], ids=str)
def test_prompted_samples_follow_the_conditional(case: Case, name: str) -> None:
    """Fixed tokens condition the rest: with S steps the two that are free move in the same one with probability at most
    2^2 / (2 S). (Where any visible token may be noise, Duo and GIDD, the network was never shown clean prompts: its exact
    denoiser treats them as noisy, so they keep the prompt, by the law below, but are not held to the conditional.)"""
    first, steps = 1, 128
    canvas = Canvas(torch.full((N, L), first), (torch.arange(L) == 0).expand(N, -1))
    tokens = finish(case, name, canvas, steps)
    assert (tokens[:, 0] == first).all()
    given = torch.where(TEXTS[:, 0] == first, P, 0.0)
    assert total_variation(tokens, given / given.sum()) < sampling_bound(given / given.sum(), N) + 2**2 / (2 * steps)


@pytest.mark.parametrize(("case", "name"), PAIRS, ids=str)
def test_fixed_tokens_stay_fixed_in_every_frame(case: Case, name: str) -> None:
    rows, length = 5, 9
    network = small_network()
    fixed = torch.zeros(rows, length, dtype=torch.bool)
    for row in range(rows):
        fixed[row, :row] = True
    if not isinstance(case.family, AR):
        fixed[:, -1] = True
    canvas = Canvas(torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(0)), fixed)
    sampler = build(name, steps_option(name, 6), case.family)
    with torch.no_grad():
        frames = list(sampler(Denoiser(network, case.family), canvas, KEY))
    assert frames
    assert all((frame.tokens == canvas.tokens)[fixed].all() for frame in frames)
    assert (frames[-1].tokens < V).all()


@pytest.mark.parametrize("case", [c for c in WITH_CLOCK if c is not HYBRID], ids=repr)
def test_guidance_of_weight_zero_is_the_identity_and_free(case: Case) -> None:
    canvas = Canvas(torch.ones(64, L, dtype=torch.int64), (torch.arange(L) == 0).expand(64, -1))
    plain, inner = Denoiser(case.oracle, case.family), Denoiser(case.oracle, case.family)
    guided = Guided(inner, 0.0, canvas.fixed, V - 1)
    assert torch.equal(
        finish(case, case.family.sampler, canvas, 8, plain), finish(case, case.family.sampler, canvas, 8, guided)
    )
    assert plain.calls == inner.calls


def test_guidance_sharpens_towards_the_prompt() -> None:
    """(1 + w) log p(. | prompt) - w log p(.): the formula on one row, by hand."""
    case = next(c for c in CASES if c.family.name == "mdlm")
    tokens, t = torch.tensor([[1, V, V]]), torch.ones(1, 1, dtype=torch.float64)
    where, prompt = flat_places(tokens == V), torch.tensor([[True, False, False]])
    plain = Denoiser(case.oracle, case.family)
    given, free = plain(tokens, t)(where), plain(torch.full_like(tokens, V), t)(where)
    guided = Guided(plain, 1.5, prompt, V)(tokens, t)(where)
    assert torch.allclose(guided, (2.5 * given - 1.5 * free).log_softmax(-1), atol=1e-12)


@pytest.mark.parametrize("case", [*CASES, HYBRID], ids=repr)
def test_predictions_are_normalised(case: Case) -> None:
    """Law 5, of log_p, on every state the family can be shown."""
    tokens = torch.cat([TEXTS, torch.full((1, L), V - 1)]) if case.family.name == "duo" else TEXTS
    network = small_network()
    t = torch.full((len(tokens),), 0.4, dtype=torch.float64) if isinstance(case.family, DiffusionFamily) else None
    with torch.no_grad():
        log_p = case.family.log_p(network, tokens, t, None)
        hidden = torch.randn(4, L, V, dtype=torch.float64) * 5
    assert log_p.shape == (len(tokens), L, V)
    assert torch.allclose(log_p.exp().sum(-1), torch.ones(1).double(), **CLOSE)
    if isinstance(case.family, DiffusionFamily):
        seen = torch.tensor([[0, 1, 2]]).expand(4, -1)
        assert torch.allclose(case.family.interpret(hidden, seen).exp().sum(-1), torch.ones(1).double(), **CLOSE)


def small_network(vocab: int = V, seed: int = 0) -> Transformer:
    """Random weights everywhere, adaLN and head included (which a fresh network has at zero); in float64, so that no near tie
    falls one way alone and the other in company."""
    network = in_float64(initialised(Shape("dit", 2, 2, 16, 64, vocab, 8), seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


def test_left_to_right_with_cache_sees_what_a_full_pass_sees() -> None:
    """Law 7 for AR: hidden states token by token through the cache, and all at once."""
    family, network = AR(V), small_network()
    tokens = torch.randint(0, V, (3, 12), generator=torch.Generator().manual_seed(1))
    seen = family.shifted(tokens)
    with torch.no_grad():
        whole, cache, parts = network.trunk(family.view(seen)), network.cache(3, 13), []
        for first, last in ((0, 4), (4, 5), (5, 6), (6, 13)):
            places = torch.arange(first, last)
            view = View(seen[:, first:last], places[None], Attention.CAUSAL, cache=cache.at(places.expand(3, -1)))
            parts.append(network.trunk(view))
    assert torch.allclose(torch.cat(parts, 1), whole, **CLOSE)


@pytest.mark.parametrize("alpha_0", [0.0, 0.5, 1.0])
def test_ordered_with_cache_sees_what_a_full_pass_sees(alpha_0: float) -> None:
    """Law 7 for Eso-LM: every logit that the sampler drew from, against one causal pass over the canvas of that moment."""
    family, network = EsoLM(V, alpha_0), small_network()
    rows, length = 4, 10
    canvas = Canvas(torch.ones(rows, length, dtype=torch.int64), torch.rand(rows, length).lt(0.2))
    recorded: list[Tensor] = []

    class Recording(Denoiser):
        def log_p(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
            recorded.append(super().log_p(hidden, ids))
            return recorded[-1]

    sampler = Ordered(steps=4)
    noise = counter_rng.field(KEY, torch.arange(rows), length)
    order, event, _ = sampler.schedule(canvas.fixed, alpha_0, noise)
    before = canvas.write(family.prior(noise)).tokens
    with torch.no_grad():
        for now, frame in enumerate(sampler(Recording(network, family), canvas, KEY)):
            rank, writing = window(event, now)
            # Masks to be written later stand after every query of this call in the order: causal attention hides them.
            full = family.log_p(network, before, None, order)
            place = order.gather(1, rank.clamp(max=length - 1))
            expected = full.gather(1, place[..., None].expand(-1, -1, V))[writing]
            assert torch.allclose(recorded[now], expected, **CLOSE)
            before = frame.tokens
    assert len(recorded) == int(event.max()) + 1


def test_ordered_writes_every_free_token_once_and_fixed_ones_never() -> None:
    fixed = torch.rand(50, 20, generator=torch.Generator().manual_seed(2)).lt(0.3)
    for alpha_0 in (0.0, 0.4, 1.0):
        order, event, _ = Ordered(steps=6).schedule(fixed, alpha_0, counter_rng.field(KEY, torch.arange(50), 20))
        assert torch.equal(order.sort(1).values, torch.arange(20).expand(50, -1))
        assert ((event == -1) == fixed.gather(1, order)).all() and (event.diff(dim=1) >= 0).all()
        written = sum(window(event, now)[1].sum() for now in range(int(event.max()) + 1))
        assert int(written) == int((~fixed).sum())


@pytest.mark.parametrize(("case", "name"), PAIRS, ids=str)
def test_a_row_samples_alone_as_in_company(case: Case, name: str) -> None:
    """Law 8: the first row of a batch of 6, and alone; its randomness is its own and nobody's padding reaches it. Two
    tokens are given: on a canvas of masks alone all places look alike, and rounding decides which of them is the surest."""
    network, tokens = small_network(), torch.randint(0, V, (6, 11), generator=torch.Generator().manual_seed(1))
    canvas = Canvas(tokens, (torch.arange(11) < 2).expand(6, -1))
    with torch.no_grad():
        one = Canvas(canvas.tokens[:1], canvas.fixed[:1])
        alone = finish(case, name, one, 5, Denoiser(network, case.family))
        company = finish(case, name, canvas, 5, Denoiser(network, case.family))
    assert torch.equal(alone[0], company[0])
    assert not torch.equal(company[0], company[1])


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_row_is_scored_alone_as_in_company(case: Case) -> None:
    """Law 8 for bounds, and the topology half of law 9: sample 5 is corrupted alike in any batch."""
    network = small_network()
    tokens = torch.randint(0, V, (8, 12), generator=torch.Generator().manual_seed(4))
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(8))
    some = torch.tensor([5, 2])
    part = Batch(tokens[some], batch.scored[some], batch.index[some])
    functions: list[Callable[[Batch], Tensor]] = [
        lambda b: case.family.nelbo(network, b, key=KEY).nats,
        lambda b: case.family.loss(network, b, key=KEY, progress=0.0).nats,
    ]
    with torch.no_grad():
        for score in functions:
            assert torch.allclose(score(batch)[some], score(part), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_impossible_pair_says_what_would_work(family: str, sampler: str) -> None:
    from redraft.families.base import build as build_family

    made = build_family(family, {}, V)
    if SAMPLERS[sampler].load()().refusal(made) is None:
        assert build(sampler, {}, made)
        return
    with pytest.raises(UserError, match=rf"cannot serve family '{family}'.*Try: "):
        build(sampler, {}, made)


def test_temperature_and_nucleus_have_one_meaning() -> None:
    """Temperature on log p, then the smallest set whose mass reaches p: the token that crosses is kept."""
    log_p = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()
    kept = sharpen(log_p, 1.0, 0.7).exp()
    assert torch.allclose(kept, torch.tensor([[0.5, 0.3, 0.0, 0.0]], dtype=torch.float64) / 0.8)
    assert torch.allclose(sharpen(log_p, 1.0, 0.5).exp(), torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64))
    assert torch.allclose(sharpen(log_p, 0.5, 1.0).exp(), (log_p.exp() ** 2) / (log_p.exp() ** 2).sum())
    assert sharpen(log_p, 0.0, 1.0).argmax() == 0 and torch.equal(sharpen(log_p, 1.0, 1.0), log_p)


@pytest.mark.parametrize(("case", "name"), PAIRS, ids=str)
def test_a_canvas_with_nothing_to_write_is_handed_back(case: Case, name: str) -> None:
    tokens = torch.randint(0, V, (2, 5), generator=torch.Generator().manual_seed(1))
    canvas = Canvas(tokens, torch.ones_like(tokens, dtype=torch.bool))
    *_, finished = build(name, steps_option(name, 3), case.family)(Denoiser(small_network(), case.family), canvas, KEY)
    assert torch.equal(finished.tokens, tokens)
