"""Eso-LM's variant A, against definitions: both ways among what diffusion wrote, causal in the order after that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.esolm import EsoLM
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key, categorical
from redraft.sampling.base import Denoiser
from redraft.sampling.ordered import Ordered
from redraft.types import Attention, Canvas, View
from tests.rounding import CLOSE, in_float64

V, L, B = 7, 9, 3
KEY = Key.of(4)


@pytest.fixture(scope="module")
def network() -> Transformer:
    made = in_float64(initialised(Shape("dit", 2, 2, 16, 64, V, 8), 0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made.requires_grad_(False)


def text(seed: int, hidden: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, the same with some hidden, and an order with the clean ones first: [B, L] each."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randint(0, V, (B, L), generator=generator)
    z = x0.masked_fill(torch.rand(B, L, generator=generator) < hidden, V)
    order = ((z == V) + 0.9 * torch.rand(B, L, generator=generator)).argsort(1)
    return x0, z, order


def told(network: Transformer, known: list[tuple[int, int]], later: list[tuple[int, int]], place: int) -> Tensor:
    """log p at `place`, one token alone: `known` (place, id) see each other, `later` follow one by one, then the mask."""
    row = [*known, *later, (place, V)]
    n, q = len(known), len(row)
    pattern = torch.tensor([[k <= i or (i < n and k < n) for k in range(q)] for i in range(q)])
    view = View(torch.tensor([[i for _, i in row]]), torch.tensor([[p for p, _ in row]]), pattern[None])
    return network.head(network.trunk(view))[0, -1].log_softmax(-1)


def held(row: Tensor, places: Tensor) -> list[tuple[int, int]]:
    return [(int(p), int(row[p])) for p in places]


def test_diffusion_masks_see_every_clean_token_both_ways(network: Transformer) -> None:
    """A mask also sees the masks before it in the order."""
    x0, z, order = text(2, 0.5)
    ours = EsoLM(V, variant="A").diffusion_nats(network, z, x0, order)
    for row in range(B):
        clean = [int(p) for p in order[row] if z[row, p] != V]
        masks = [int(p) for p in order[row] if z[row, p] == V]
        for number, place in enumerate(masks):
            before = [(p, V) for p in masks[:number]]
            log_p = told(network, held(x0[row], torch.tensor(clean, dtype=torch.int64)), before, place)
            assert float(ours[row, place]) == pytest.approx(-float(log_p[x0[row, place]]), abs=1e-9)
        assert (ours[row][torch.tensor(clean, dtype=torch.int64)] == 0).all()


def test_sequential_phase_is_causal_after_what_diffusion_wrote(network: Transformer) -> None:
    x0, z0, order = text(3, 0.6)
    ours = EsoLM(V, 0.4, variant="A").sequential_nats(network, z0, x0, order)
    for row in range(B):
        written = int((z0[row] != V).sum())
        for rank in range(written, L):
            known, later = held(x0[row], order[row, :written]), held(x0[row], order[row, written:rank])
            place = int(order[row, rank])
            log_p = told(network, known, later, place)
            assert float(ours[row, place]) == pytest.approx(-float(log_p[x0[row, place]]), abs=1e-9)


def test_order_of_the_clean_tokens_does_not_matter_to_a_and_does_to_b(network: Transformer) -> None:
    x0, z, order = text(5, 0.4)
    other = order.clone()
    for row in range(B):
        clean = int((z[row] != V).sum())
        other[row, :clean] = order[row, :clean].flip(0)
    same = [[EsoLM(V, variant=v).diffusion_nats(network, z, x0, o) for o in (order, other)] for v in "AB"]
    assert torch.allclose(*same[0], **CLOSE) and not torch.allclose(*same[1], atol=1e-3)


def test_without_diffusion_the_variants_are_one(network: Transformer) -> None:
    x0, _, order = text(6, 0.0)
    scored = torch.ones_like(x0, dtype=torch.bool)
    a, b = (EsoLM(V, 0.0, variant=v).chain_nats(network, x0, scored, order) for v in "AB")
    assert torch.allclose(a, b, **CLOSE)


def test_likelihood_of_an_order_is_its_chain_rule(network: Transformer) -> None:
    """alpha_0 = 1: each token given all before it in the order, which see each other."""
    x0, _, order = text(7, 0.0)
    ours = EsoLM(V, variant="A").chain_nats(network, x0, torch.ones_like(x0, dtype=torch.bool), order)
    for row in range(B):
        for rank in range(L):
            place = int(order[row, rank])
            log_p = told(network, held(x0[row], order[row, :rank]), [], place)
            assert float(ours[row, place]) == pytest.approx(-float(log_p[x0[row, place]]), abs=1e-9)


@pytest.mark.parametrize("alpha_0", [0.0, 0.5, 1.0])
def test_sampler_draws_from_its_own_definition(network: Transformer, alpha_0: float) -> None:
    """Every token that a call writes, drawn again from a view of one token: the diffused ones both ways, the rest causal."""
    family, sampler = EsoLM(V, alpha_0, variant="A"), Ordered(steps=4)
    fixed = torch.rand(B, L, generator=torch.Generator().manual_seed(8)).lt(0.2)
    canvas = Canvas(torch.ones(B, L, dtype=torch.int64), fixed)
    noise = counter_rng.field(KEY, torch.arange(B), L)
    order, event, diffused = sampler.schedule(fixed, alpha_0, noise)
    frames = [canvas.write(family.prior(noise)), *sampler(Denoiser(network, family), canvas, KEY)]
    for now, (before, after) in enumerate(zip(frames[:-1], frames[1:], strict=True)):
        for row in range(B):
            clean = int((event[row] < now).sum())
            split = min(clean, int(diffused[row]))
            known, later = (held(before.tokens[row], order[row, r]) for r in (slice(split), slice(split, clean)))
            for rank in (event[row] == now).nonzero()[:, 0].tolist():
                place = int(order[row, rank])
                masks = [(int(p), V) for p in order[row, clean:rank]]
                log_p = told(network, known, later + masks, place)
                assert int(after.tokens[row, place]) == int(
                    categorical(log_p[None], noise("token")[row, place][None])[0]
                )
    assert (frames[-1].tokens < V).all() and len(frames) == int(event.max()) + 2


def test_an_order_that_does_not_say_who_wrote_what_is_refused(network: Transformer) -> None:
    x0, _, order = text(9, 0.0)
    with pytest.raises(UserError, match=r"variant A with 0 < alpha_0 < 1 an order does not tell"):
        EsoLM(V, 0.5, variant="A").chain_nats(network, x0, torch.ones_like(x0, dtype=torch.bool), order)
    with pytest.raises(UserError, match="unknown variant 'C'"):
        EsoLM(V, variant="C")


def test_b_is_plain_causal_attention() -> None:
    z = torch.tensor([[1, 2, V]])
    assert EsoLM(V).view(z, torch.arange(3)[None], torch.tensor([2])).attention is Attention.CAUSAL
