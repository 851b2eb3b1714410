"""Block diffusion: its bound, its orders, its two streams and its cached sampler, against what they mean."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.evaluation.likelihood.estimators import regrouped
from redraft.families.bd3lm import BD3LM
from redraft.families.mdlm import MDLM
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.sampling.base import Denoiser
from redraft.sampling.bd3lm import BlockDiffusion, events
from redraft.types import Batch, Canvas, Network, View
from tests.laws.test_bound import Wrong, expected_bd3lm_nelbo
from tests.laws.test_sampling import N, blank, sampling_bound, small_network, total_variation
from tests.world import TEXTS, Exact, L, P, V, batch_of, states

KEY = Key.of(8)
BLOCKS = (1, 2, 3)
pytestmark = pytest.mark.filterwarnings("error")


NETWORKS: dict[str, Network] = {"wrong": Wrong(Exact()), "transformer": small_network()}


def texts(rows: int, length: int) -> Tensor:
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(4))


# The bound


@pytest.mark.parametrize("length", [1, 7, 8, 11])
@pytest.mark.parametrize("block", [1, 3, 4, 20])
def test_two_streams_are_a_pass_over_each_prefix(block: int, length: int) -> None:
    """Block by block: one stream over the clean blocks before it and the block as it is seen. Nothing leaks."""
    family, network, x0 = BD3LM(V, block), small_network(), texts(5, length)
    hide = torch.rand(x0.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    place = torch.arange(length)
    with torch.no_grad():
        ours, slow = family.hidden_nats(network, x0, hide), torch.zeros(x0.shape, dtype=torch.float64)
        for start in range(0, length, block):
            stop = min(start + block, length)
            z = torch.cat([x0[:, :start], x0.masked_fill(hide, V)[:, start:stop]], 1)
            pattern = place[None, :stop] // block <= place[:stop, None] // block
            logits = network.head(network.trunk(View(z, place[None, :stop], pattern[None])))[:, start:]
            slow[:, start:stop] = -logits.log_softmax(-1).gather(-1, x0[:, start:stop, None])[..., 0]
    assert torch.allclose(ours.double(), slow.where(hide, 0.0), atol=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
def test_one_block_is_mdlm(network: str) -> None:
    family = BD3LM(V, L)
    with torch.no_grad():
        for hide in states(2) == 1:
            ours, mdlm = (f.hidden_nats(NETWORKS[network], TEXTS, hide.expand_as(TEXTS)) for f in (family, MDLM(V)))
            assert torch.allclose(ours, mdlm, atol=1e-9)
        seen = states(V + 1)
        assert torch.allclose(*(f.log_p(NETWORKS[network], seen, None, None) for f in (family, MDLM(V))), atol=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
def test_blocks_of_one_token_score_the_chain_rule_without_variance(network: str) -> None:
    """Whatever is drawn, each token pays its -log p given those before it; in training too, at any rates."""
    family, slow = BD3LM(V, 1), torch.zeros(TEXTS.shape, dtype=torch.float64)
    with torch.no_grad():
        for place in range(L):
            seen = TEXTS.masked_fill(torch.arange(L) >= place, V)
            slow[:, place] = -family.log_p(NETWORKS[network], seen, None, None)[:, place].gather(
                1, TEXTS[:, place, None]
            )[:, 0]
        for seed, clips in enumerate(((0.0, 1.0), (0.3, 0.8), (1.0, 1.0))):
            clipped = BD3LM(V, 1, "nelbo", *clips)
            trained = clipped.loss(NETWORKS[network], batch_of(TEXTS), key=Key.of(seed), progress=0.0)
            scored = clipped.nelbo(NETWORKS[network], batch_of(TEXTS), key=Key.of(seed))
            assert torch.allclose(trained.nats.double(), slow) and torch.allclose(scored.nats.double(), slow)
    exact = family.nelbo(Exact(), batch_of(TEXTS), key=KEY).nats.sum(1)
    assert torch.allclose(exact, -P.log(), atol=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("block", BLOCKS)
def test_draws_that_count_hidden_tokens_average_to_the_bound_of_hiding_by_chance(block: int, network: str) -> None:
    """Over 2^14 draws of texts, in the bound and in training at all rates: 5 standard errors of the enumerated definition."""
    family, n = BD3LM(V, block), 2**14
    chosen = torch.multinomial(P, n, replacement=True, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = expected_bd3lm_nelbo(family, NETWORKS[network])
        batch = batch_of(TEXTS[chosen])
        for loss in (
            family.nelbo(NETWORKS[network], batch, key=KEY),
            family.loss(NETWORKS[network], batch, key=KEY, progress=0.0),
        ):
            nats = loss.nats.double().sum(1)
            assert abs(float(nats.mean()) - expected) < 5 * float(nats.std()) / math.sqrt(n)


@pytest.mark.parametrize("clips", [(0.0, 1.0), (0.3, 0.8), (0.5, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("block", [1, 4, 5])
def test_each_block_hides_its_rate_rounded_up(block: int, clips: tuple[float, float]) -> None:
    """Of the scored tokens; a short last block and one with nothing to score included. Weights are one over the rate."""
    family, x0 = BD3LM(V, block, "nelbo", *clips), texts(64, 11)
    scored = torch.rand(x0.shape, generator=torch.Generator().manual_seed(2)) < 0.6
    batch = Batch(x0, scored, torch.arange(64))
    rate = clips[0] + (clips[1] - clips[0]) * family.times(batch, KEY)
    hide, weight = family.hidden(batch, rate, KEY)
    assert not (hide & ~scored).any()
    for number, start in enumerate(range(0, 11, block)):
        there, count = (m[:, start : start + block].sum(1) for m in (scored, hide))
        assert torch.equal(count, (rate[:, number] * there).ceil().long())
        assert torch.equal(weight[:, start] * count, there.double())


def test_hidden_subsets_are_equally_likely() -> None:
    """2^14 draws of two blocks of three: given its number, each subset within 5 standard errors of its share."""
    n, family = 2**14, BD3LM(V, 3)
    batch = batch_of(texts(n, 6))
    hide, _ = family.hidden(batch, family.times(batch, KEY), KEY)
    for start, count in itertools.product((0, 3), (1, 2, 3)):
        block = hide[:, start : start + 3]
        of_size = block[block.sum(1) == count]
        assert abs(len(of_size) - n / 3) <= 3  # evenly spread over samples
        for subset in itertools.combinations(range(3), count):
            hit = int((of_size == torch.zeros(3).scatter(0, torch.tensor(subset), 1).bool()).all(1).sum())
            share = 1 / math.comb(3, count)
            assert abs(hit - len(of_size) * share) <= 5 * math.sqrt(len(of_size) * share * (1 - share))


def test_times_are_evenly_spread_over_samples_and_over_blocks() -> None:
    """Each irrational alone leaves no gap of 2.1/n between n points (computed, to n = 3000): in both directions so."""
    for n in (8, 21, 34, 100, 144):
        batch = Batch(
            torch.zeros(n, 4 * n, dtype=torch.int64), torch.ones(n, 4 * n, dtype=torch.bool), torch.arange(n) + 777
        )
        t = BD3LM(V, 4).times(batch, KEY)
        assert t.shape == (n, n) and (t > 0).all() and (t <= 1).all()
        for direction in (0, 1):
            ordered = t.sort(direction).values.movedim(direction, 0)
            gaps = torch.cat([ordered, ordered[:1] + 1]).diff(dim=0)
            assert float(gaps.max()) < 2.1 / n


def test_unscored_tokens_condition_their_block_and_later_ones() -> None:
    """With the exact network, the second block's bound given all of the first is its conditional entropy, text by text."""
    family, scored = BD3LM(V, 1), torch.tensor([False, True, True]).expand_as(TEXTS)
    nats = family.nelbo(Exact(), replace(batch_of(TEXTS), scored=scored), key=KEY).nats
    first = torch.stack([P[TEXTS[:, 0] == v].sum() for v in range(V)])
    assert (nats[:, 0] == 0).all()
    assert torch.allclose(nats.sum(1), -(P / first[TEXTS[:, 0]]).log(), atol=1e-9)


@pytest.mark.parametrize("objective", ["nelbo", "low_variance"])
def test_gradients_reach_every_weight(objective: str) -> None:
    family, network = BD3LM(V, 4, objective, 0.3, 0.8), small_network()
    batch = batch_of(texts(6, 10))
    family.loss(network, batch, key=KEY, progress=0.0).mean().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().sum() > 0, name


# Orders


def written_orders(block: int) -> list[tuple[int, ...]]:
    """Every order that writes block after block."""
    parts = [itertools.permutations(range(at, min(at + block, L))) for at in range(0, L, block)]
    return [tuple(itertools.chain(*order)) for order in itertools.product(*parts)]


@torch.no_grad()
def by_order(family: BD3LM, network: Network) -> Tensor:
    """-log p(x | order) of every text in each of `written_orders`, [27, R]."""
    every = torch.ones_like(TEXTS, dtype=torch.bool)
    orders = [torch.tensor(order).expand_as(TEXTS) for order in written_orders(family.block)]
    return torch.stack([family.chain_nats(network, TEXTS, every, order).double().sum(1) for order in orders], 1)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("block", BLOCKS)
def test_chain_rule_is_one_pass_a_token(block: int, network: str) -> None:
    """And so a distribution over texts in every order."""
    family = BD3LM(V, block)
    ours = by_order(family, NETWORKS[network])
    assert torch.allclose((-ours).logsumexp(0), torch.zeros(ours.shape[1]).double(), atol=1e-9)
    for number, order in enumerate(written_orders(block)):
        seen, slow = torch.full_like(TEXTS, V), torch.zeros(len(TEXTS), dtype=torch.float64)
        for place in order:
            with torch.no_grad():
                log_p = family.log_p(NETWORKS[network], seen, None, None)[:, place]
            slow -= log_p.gather(1, TEXTS[:, place, None])[:, 0]
            seen[:, place] = TEXTS[:, place]
        assert torch.allclose(ours[:, number], slow, atol=1e-9)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("block", BLOCKS)
def test_bound_is_one_order_and_falls_to_the_exact_likelihood(block: int, network: str) -> None:
    """NELBO = IW_1 >= IW_2 >= -log of the mean over its orders, enumerated; equal where there is one order."""
    family = BD3LM(V, block)
    nats = by_order(family, NETWORKS[network])
    with torch.no_grad():
        nelbo = expected_bd3lm_nelbo(family, NETWORKS[network])
    pairs = [nats[:, list(pair)] for pair in itertools.product(range(nats.shape[1]), repeat=2)]
    two = float((P * torch.stack([regrouped(pair, 2)[:, 0] for pair in pairs]).mean(0)).sum())
    one, exact = (float((P * part).sum()) for part in (nats.mean(1), regrouped(nats, nats.shape[1])[:, 0]))
    assert nelbo == pytest.approx(one, abs=1e-9)
    if block == 1:
        assert one == pytest.approx(two) == pytest.approx(exact)
    else:
        assert one > two + 1e-6 and two > exact + 1e-6


def test_drawn_orders_are_uniform_within_blocks() -> None:
    """2^14 draws, each frequency within 5 standard errors; an order that cannot be is never drawn. Given tokens first."""
    n = 2**14
    noise = counter_rng.field(KEY, torch.arange(n), L)
    for block in BLOCKS:
        drawn, possible = BD3LM(V, block).orders(torch.ones(n, L, dtype=torch.bool), noise), written_orders(block)
        seen = torch.stack([(drawn == torch.tensor(order)).all(1).double().mean() for order in possible])
        share = 1 / len(possible)
        assert ((seen - share).abs() <= 5 * math.sqrt(share * (1 - share) / n)).all() and float(seen.sum()) == 1
        given = torch.tensor([True, False, True]).expand(n, -1)
        assert (BD3LM(V, block).orders(given, noise)[:, 0] == 1).all()


# The sampler


def definition(family: BD3LM, network: Network, canvas: Canvas, sampler: BlockDiffusion) -> list[Tensor]:
    """No cache: every call reads all the text so far, in one stream, by the block-causal pattern and the window."""
    (rows, length), block = canvas.tokens.shape, family.block
    noise, out = counter_rng.field(KEY, torch.arange(rows), length), []
    tokens, when, token = canvas.tokens.masked_fill(~canvas.fixed, V), noise("when"), noise("token")
    for start in range(0, length, block):
        stop = min(start + block, length)
        place = torch.arange(stop)
        opens = place[:, None] // block * block
        pattern = (place < opens + block) & ((place >= opens - sampler.context) | (sampler.context == 0))
        calls = [moves(when[row], canvas.fixed[row], start, stop, sampler.steps) for row in range(rows)]
        for now in range(max(map(len, calls))):
            with torch.no_grad():
                logits = network.head(network.trunk(View(tokens[:, :stop], place[None], pattern[None])))
            tokens = tokens.clone()
            for row in range(rows):
                for l in calls[row][now] if now < len(calls[row]) else ():
                    log_p = logits[row, l].double().log_softmax(-1)
                    tokens[row, l] = counter_rng.categorical(log_p[None], token[row, l : l + 1])[0]
            out.append(tokens)
    return out


def moves(when: Tensor, fixed: Tensor, start: int, stop: int, steps: int) -> list[list[int]]:
    """The free places of a block that move together, in the order of their steps."""
    free = [l for l in range(start, stop) if not fixed[l]]
    step = {l: int(when[l] * steps) if steps else float(when[l]) for l in free}
    return [[l for l in free if step[l] == at] for at in sorted(set(step.values()))]


def prompts(rows: int, length: int, block: int) -> dict[str, Tensor]:
    """Which tokens are given: none; some at random; some and the second to fourth blocks; a beginning of many blocks, and
    one token in the end."""
    scattered = torch.rand(rows, length, generator=torch.Generator().manual_seed(5)) < 0.3
    scattered[:, -1] = False
    place = torch.arange(length)
    return {
        "none": torch.zeros(rows, length, dtype=torch.bool),
        "scattered": scattered,
        "blocks": scattered | (place // block == 1) | (place // block == 2) | (place // block == 3),
        "beginning": ((place < length - block - 2) | (place == length - 2)).expand(rows, -1),
    }


GIVEN = ("none", "scattered", "blocks", "beginning")
WALKS: list[dict[str, Any]] = [
    {"steps": 0}, {"steps": 3}, {"steps": 64}, {"steps": 0, "context": 3}, {"steps": 2, "context": 7},
    {"steps": 5, "context": 1},
]  # fmt: skip
# Every walk from every prompt in blocks of four; other blocks every walk from one prompt, and one walk from every prompt.
CACHED = [(4, options, given) for options in WALKS for given in GIVEN]
CACHED += [
    (block, options, given)
    for block in (1, 3, 50)
    for options in WALKS
    for given in GIVEN
    if given == "scattered" or options == WALKS[4]
]


@pytest.mark.parametrize(("block", "options", "given"), CACHED, ids=str)
def test_cached_sampler_is_its_uncached_definition(block: int, options: dict[str, Any], given: str) -> None:
    """Token for token in every frame, a window or none, prompts anywhere, a short last block."""
    family, network, rows, length = BD3LM(V, block), small_network(), 4, 22
    canvas, sampler = Canvas(texts(rows, length), prompts(rows, length, block)[given]), BlockDiffusion(**options)
    denoiser = Denoiser(network, family)
    with torch.no_grad():
        frames = [frame.tokens for frame in sampler(denoiser, canvas, KEY)]
    expected = definition(family, network, canvas, sampler)
    assert len(frames) == len(expected) == denoiser.calls and all(map(torch.equal, frames, expected))
    assert denoiser.rows == int((~canvas.fixed).sum()) and (frames[-1] < V).all()


@pytest.mark.parametrize("context", [1, 4, 6])
def test_logits_through_the_ring_are_those_of_the_window(context: int) -> None:
    """Every logit drawn from, to float64, on a text five times as long as the ring."""
    family, network, rows, length = BD3LM(V, 4), small_network(), 3, 60
    sampler, recorded = BlockDiffusion(steps=0, context=context), []

    class Recording(Denoiser):
        def log_p(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
            recorded.append(super().log_p(hidden, ids))
            return recorded[-1]

    with torch.no_grad():
        *_, last = sampler(Recording(network, family), blank(rows, length), KEY)
        place = torch.arange(length)
        opens, seen = place[:, None] // 4 * 4, last.tokens.clone()
        pattern = ((place < opens + 4) & (place >= opens - context))[None]
        order = (place // 4 + counter_rng.field(KEY, torch.arange(rows), length)("when")).argsort(1)
        for now in reversed(range(length)):
            seen[torch.arange(rows), order[:, now]] = V
            logits = network.head(network.trunk(View(seen, place[None], pattern)))
            expected = logits[torch.arange(rows), order[:, now]].log_softmax(-1)
            assert torch.allclose(recorded[now], expected, atol=1e-9)


def test_the_window_bounds_the_memory() -> None:
    sizes: list[int] = []

    class Watched(Exact):
        def cache(self, rows: int, size: int) -> Any:
            sizes.append(size)
            return super().cache(rows, size)

    family, long = BD3LM(V, 4), blank(1, 400)
    for context in (0, 16):
        list(BlockDiffusion(0, context)(Denoiser(Watched(), family), long, KEY))
    assert sizes == [400, 16 + 2 * 4]


@pytest.mark.parametrize("oracle", [Exact(), Wrong(Exact())], ids=["exact", "wrong"])
@pytest.mark.parametrize("block", BLOCKS)
def test_one_token_a_call_draws_from_the_model(block: int, oracle: Network) -> None:
    """First-hitting has no bias: the law of N samples against the mean of p(x | order) over orders, enumerated."""
    family = BD3LM(V, block)
    law = (-regrouped(nats := by_order(family, oracle), nats.shape[1])[:, 0]).exp()
    assert float(law.sum()) == pytest.approx(1)
    *_, last = BlockDiffusion(steps=0)(Denoiser(oracle, family), blank(N), KEY)
    assert total_variation(last.tokens, law) < sampling_bound(law, N)


def test_calls_of_the_sampler() -> None:
    """One a token for first-hitting, one a block for one step; a prompt of whole blocks and clean blocks cost none."""
    family, rows, length = BD3LM(V, 4), 5, 18
    for options, start, calls in (
        ({"steps": 0}, 0, 18),
        ({"steps": 1}, 0, 5),
        ({"steps": 1}, 9, 3),
        ({"steps": 0}, 12, 6),
    ):
        denoiser = Denoiser(small_network(), family)
        canvas = Canvas(texts(rows, length), (torch.arange(length) < start).expand(rows, -1))
        with torch.no_grad():
            assert len(list(BlockDiffusion(**options)(denoiser, canvas, KEY))) == denoiser.calls == calls
        assert denoiser.rows == rows * (length - start)


@pytest.mark.parametrize("steps", [0, 1, 3, 64])
def test_every_free_token_moves_once_and_no_call_of_a_row_is_empty(steps: int) -> None:
    rows, length, block = 200, 14, 4
    free = torch.rand(rows, length, generator=torch.Generator().manual_seed(2)) < 0.7
    u = counter_rng.field(KEY, torch.arange(rows), length)("when")
    event = events(u, free, block, steps)
    assert torch.equal(event >= 0, free)
    for row, start in itertools.product(range(rows), range(0, length, block)):
        stop = min(start + block, length)
        expected = moves(u[row], ~free[row], start, stop, steps)
        for now, places in enumerate(expected):
            assert (event[row, start:stop] == now).nonzero()[:, 0].add(start).tolist() == places
        assert int(event[row, start:stop].max()) == len(expected) - 1


# Refusals


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"block": 0}, "family.block must be at least 1 token, got 0"),
        ({"clip_low": 0.5, "clip_high": 0.4}, "0 <= low <= high <= 1 with high above 0: got 0.5 and 0.4"),
        ({"clip_high": 0.0}, "high above 0"),
        ({"clip_low": -0.1}, "got -0.1 and 1.0"),
        ({"objective": "elbo"}, "unknown objective 'elbo'.*'nelbo'"),
    ],
    ids=str,
)
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        BD3LM(V, **options)
    assert "\n" not in str(refused.value)


def test_what_it_cannot_be_asked_is_refused() -> None:
    family, every = BD3LM(V, 2), torch.ones_like(TEXTS, dtype=torch.bool)
    with pytest.raises(UserError, match="no clock: leave out `t`"):
        family.log_p(Exact(), TEXTS, torch.zeros(len(TEXTS)), None)
    with pytest.raises(UserError, match="leave out `order`"):
        family.log_p(Exact(), TEXTS, None, TEXTS)
    with pytest.raises(UserError, match="no order that goes back to a block"):
        family.chain_nats(Exact(), TEXTS, every, torch.tensor([0, 2, 1]).expand_as(TEXTS))
    for options, says in (({"steps": -1}, "0 for one token a call: got -1"), ({"context": -1}, "or 0 for all: got -1")):
        with pytest.raises(UserError, match=says):
            BlockDiffusion(**options)
