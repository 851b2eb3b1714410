"""Guidance: none is free, the rest is the formula, with the prompt blanked as each family knows it; in likelihoods, in every
sampler, and with a cache."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.evaluation.likelihood.continuations import Guidance, Request, Scorer, default_estimator
from redraft.families.ar import AR
from redraft.families.base import Family, build
from redraft.families.bd3lm import BD3LM
from redraft.families.esolm import EsoLM
from redraft.network.padding import Padded
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.registry import FAMILIES
from redraft.sampling.base import Denoiser
from redraft.sampling.base import build as build_sampler
from redraft.sampling.guided import Guided, Pair, guided, without_prompt
from redraft.sampling.ordered import Ordered
from redraft.types import Attention, Batch, Canvas, View, last
from tests.evaluation.models import model
from tests.network.test_padding import SHAPES, V, network_of
from tests.rounding import CLOSE

KEY, W, P, L = Key.of(2), 1.5, 3, 8  # P of L tokens are the prompt
NETWORK = network_of(SHAPES["llama"])  # without biases, which would settle what is likeliest
SPARE = V


def texts(rows: int = 4) -> Tensor:
    return torch.randint(0, V, (rows, L), generator=torch.Generator().manual_seed(3))


def prompt(rows: int = 4, length: int = L) -> Tensor:
    return (torch.arange(length) < P).expand(rows, -1)


def pair_of(family: Family, tokens: Tensor, kind: str = "unsupervised", weight: float = W) -> Any:
    noise = counter_rng.field(KEY, torch.arange(len(tokens)), tokens.shape[1])
    blank = without_prompt(family, tokens, noise, kind)
    return guided(NETWORK, family, weight, prompt(*tokens.shape), blank)


@dataclass
class Counting:
    """A network that counts its calls."""

    network: Any
    calls: list[int] = field(default_factory=list)

    def trunk(self, view: View) -> Tensor:
        self.calls.append(len(view.tokens))
        return self.network.trunk(view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


def mixed(given: Tensor, free: Tensor) -> Tensor:
    return ((1 + W) * given - W * free).log_softmax(-1)


# None


@pytest.mark.parametrize("name", FAMILIES)
def test_no_guidance_is_the_network_itself(name: str) -> None:
    assert pair_of(build(name, {}, V), texts(), weight=0.0) is NETWORK
    plain = Denoiser(NETWORK, build(name, {}, V))
    assert Guided(plain, 0.0, prompt(), SPARE) is plain


@pytest.mark.parametrize("name", FAMILIES)
def test_no_guidance_costs_nothing_and_changes_no_bit(name: str) -> None:
    whole, request = model(name), Request((1, 2, 3), (4, 5), "question")
    scores, calls = [], []
    for guidance in (None, Guidance(0.0), Guidance(1.0)):
        counting = Counting(whole.network)
        counted = replace(whole, network=counting)
        settings = {} if guidance is None else {"guidance": guidance}
        scorer = Scorer(counted, default_estimator(whole.family), draws=4, **settings)
        scores.append(scorer.score([request])[0])
        calls.append(len(counting.calls))
    assert scores[0] == scores[1] != scores[2]
    assert calls[0] == calls[1] and calls[2] == 2 * calls[0]


# The formula, against each family's own idea of no prompt


def test_masked_families_see_masks_for_a_prompt() -> None:
    family, tokens = build("mdlm", {}, V), texts().index_fill(1, torch.tensor([5, 6]), SPARE)
    given = family.log_p(NETWORK, tokens, None, None)
    free = family.log_p(NETWORK, tokens.masked_fill(prompt(), SPARE), None, None)
    found = family.log_p(pair_of(family, tokens), tokens, None, None)
    hidden = tokens == SPARE
    assert torch.allclose(found[hidden], mixed(given, free)[hidden], atol=1e-12)
    assert torch.equal(found[~hidden], given[~hidden])  # what is visible stays certain


def test_ar_without_a_prompt_is_the_rest_of_the_text_alone() -> None:
    family, tokens = AR(V), texts()
    given = family.log_p(NETWORK, tokens, None, None)[:, P:]
    free = family.log_p(NETWORK, tokens[:, P:], None, None)
    found = family.log_p(pair_of(family, tokens), tokens, None, None)[:, P:]
    assert torch.allclose(found, mixed(given, free), atol=1e-10)


def test_esolm_without_a_prompt_looks_at_the_rest_in_its_places() -> None:
    family, tokens = EsoLM(V), texts().index_fill(1, torch.tensor([5, 7]), SPARE)
    order = torch.tensor([0, 1, 2, 6, 3, 4, 7, 5]).expand(4, -1)
    given = family.log_p(NETWORK, tokens, None, order)
    rest = order[:, P:]
    hidden = NETWORK.trunk(View(tokens.gather(1, rest), rest, Attention.CAUSAL))
    free = NETWORK.head(hidden[:, -2:]).log_softmax(-1)  # the masks, at places 7 and 5
    found = family.log_p(pair_of(family, tokens), tokens, None, order)
    assert torch.allclose(found[:, [7, 5]], mixed(given[:, [7, 5]], free), atol=1e-10)


def test_bd3lm_without_a_prompt_looks_at_the_rest_in_its_places() -> None:
    family, tokens = BD3LM(V, block=2), texts().index_fill(1, torch.tensor([5, 7]), SPARE)
    whole = family.view(tokens)
    rest = View(tokens[:, P:], whole.positions[:, P:], whole.attention.dense("cpu")[:, P:, P:])  # type: ignore[union-attr]
    free = NETWORK.head(NETWORK.trunk(rest)).log_softmax(-1)
    given, found = (family.log_p(n, tokens, None, None)[:, [5, 7]] for n in (NETWORK, pair_of(family, tokens)))
    assert torch.allclose(found, mixed(given, free[:, [5 - P, 7 - P]]), atol=1e-10)


def test_duo_sees_uniform_noise_for_a_prompt() -> None:
    """The same for the answers of one question, another for each draw; and every id as often, within 5 standard errors."""
    family, rows = build("duo", {}, V), 4000
    noise = counter_rng.field(KEY, torch.arange(rows), P)
    ids = without_prompt(family, torch.zeros(rows, P, dtype=torch.int64), noise).ids
    assert ids is not None and int(ids.max()) < V
    share = torch.bincount(ids.flatten(), minlength=V) / ids.numel()
    assert ((share - 1 / V).abs() < 5 * (1 / V / ids.numel()) ** 0.5).all()
    assert torch.equal(ids, without_prompt(family, torch.ones(rows, P, dtype=torch.int64), noise).ids)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "esolm"])
def test_standard_guidance_shows_what_training_dropped(name: str) -> None:
    """The second half of the pair's hidden states is that of the text with the spare id for its prompt."""
    family, tokens = build(name, {}, V), texts()
    pair = pair_of(family, tokens, "standard")
    shown = family.shifted(tokens) if isinstance(family, AR) else tokens
    blank = tokens.masked_fill(prompt(), SPARE)
    dropped = family.shifted(blank) if isinstance(family, AR) else blank
    places = torch.arange(shown.shape[1])[None]
    view = View(shown, places, sigma=torch.full((4, 1), 0.7))
    assert torch.equal(pair.without(view).tokens, dropped)
    second, own = pair.trunk(view)[..., NETWORK.shape.width :], NETWORK.trunk(replace(view, tokens=dropped))
    assert torch.allclose(second, own, **CLOSE)


def test_standard_guidance_needs_a_model_that_was_trained_for_it() -> None:
    for key, drop in (("cfg_dropout", 0.0), ("cfg_dropout", 0.1), ("drop", 0.1)):  # "drop" in records of version 0.1.0
        whole = model("mdlm", record={"data": {key: drop}})
        if drop:
            Scorer(whole, default_estimator(whole.family), guidance=Guidance(1.0, "standard"))
        else:
            with pytest.raises(UserError, match=r"data\.cfg_dropout"):
                Scorer(whole, default_estimator(whole.family), guidance=Guidance(1.0, "standard"))
    with pytest.raises(UserError, match="unsupervised"):
        Guidance(1.0, "supervised")
    with pytest.raises(UserError, match="at least 0"):
        Guidance(-1.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_guided_row_alone_is_the_row_in_company(name: str) -> None:
    """Padding, and prompts of other lengths beside it, are nothing."""
    family, tokens = build(name, {}, V), texts()
    lengths, prompts = torch.tensor([8, 5, 7, 6]), torch.tensor([3, 1, 0, 4])
    place = torch.arange(L)
    inside, scored = place < prompts[:, None], (place >= prompts[:, None]) & (place < lengths[:, None])

    def nats(rows: slice, length: int) -> Tensor:
        some, index = tokens[rows, :length], torch.arange(4)[rows]
        noise = counter_rng.field(KEY, index, length)
        pair = guided(NETWORK, family, W, inside[rows, :length], without_prompt(family, some, noise))
        batch = Batch(some, scored[rows, :length], index, lengths[rows])
        return family.nelbo(Padded(pair, lengths[rows]), batch, key=KEY).nats.sum(1)

    together = nats(slice(0, 4), L)
    for row in range(4):
        assert torch.allclose(nats(slice(row, row + 1), int(lengths[row])), together[row], **CLOSE)


# Samplers


def written(family: Family, sampler: str, weight: float, **options: Any) -> tuple[Tensor, Denoiser]:
    """Texts at temperature 0 after the prompts of `texts`."""
    canvas = Canvas(texts(), prompt())
    plain = Denoiser(NETWORK, family, temperature=0)
    noise = counter_rng.field(KEY, torch.arange(4), L)
    denoiser = Guided(plain, weight, prompt(), without_prompt(family, canvas.tokens, noise))
    frames = build_sampler(sampler, options, family)(denoiser, canvas, KEY)
    with torch.no_grad():
        return last(frames).tokens, plain


@pytest.mark.parametrize(
    ("family", "sampler", "options"),
    [(AR(V), "left_to_right", {}), (EsoLM(V, 0.0), "ordered", {}), (BD3LM(V, block=1), "bd3lm", {})],
    ids=repr,
)
def test_guided_samplers_with_a_cache_write_the_guided_argmax(
    family: Any, sampler: str, options: dict[str, Any]
) -> None:
    """Left to right at temperature 0: each token is the likeliest under the guided network without a cache."""
    tokens, _ = written(family, sampler, W, **options)
    plain, _ = written(family, sampler, 0.0, **options)
    assert not torch.equal(tokens, plain)
    order = None
    if isinstance(family, EsoLM):  # the sampler shuffles what is given
        order = Ordered().schedule(prompt(), family.alpha_0, counter_rng.field(KEY, torch.arange(4), L))[0]
    for place in range(P, L):
        if isinstance(family, AR):
            log_p = family.log_p(pair_of(family, tokens[:, :place]), tokens[:, :place], None, None)[:, -1]
        else:
            so_far = tokens.masked_fill(torch.arange(L) >= place, SPARE)
            log_p = family.log_p(pair_of(family, tokens), so_far, None, order)[:, place]
        assert torch.equal(log_p.argmax(-1), tokens[:, place])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_s_sampler_is_guided_at_two_calls_for_one(name: str) -> None:
    family = build(name, {}, V)
    tokens, plain = written(family, family.sampler, W)
    free, once = written(family, family.sampler, 0.0)
    assert not torch.equal(tokens, free) and torch.equal(tokens[:, :P], texts()[:, :P])
    if family.sampler not in ("ancestral", "analytic"):  # where these look may depend on what was written
        assert plain.calls == 2 * once.calls


def test_a_pair_has_no_more_to_say_than_its_network_where_nothing_is_given() -> None:
    """A prompt of no tokens: both sides are the same, and the mix is what it was."""
    family, tokens = build("mdlm", {}, V), texts().fill_(SPARE)
    pair = Pair(
        NETWORK,
        V,
        W,
        torch.zeros(4, L, dtype=torch.bool),
        without_prompt(family, tokens, counter_rng.field(KEY, torch.arange(4), L)),
    )
    assert torch.allclose(family.log_p(pair, tokens, None, None), family.log_p(NETWORK, tokens, None, None), atol=1e-12)
