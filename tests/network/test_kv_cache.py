"""Cached = uncached: what the network says does not depend on how much of the text it was shown at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.types import Attention, Cache, View
from tests.rounding import CLOSE, in_float64

V, ROWS, LENGTH = 23, 3, 12


SHAPES = {
    "dit": Shape("dit", 2, 2, 32, 64, V, 16),
    "llama": Shape("llama", 2, 2, 32, 64, V),
    "grouped": Shape("llama", 2, 4, 32, 64, V, kv_heads=2, qkv_bias=True, qk_norm=True),
    "gpt2": Shape("gpt2", 2, 2, 32, 64, V, tied=True, context=LENGTH),
}


@pytest.fixture(params=SHAPES)
def network(request: pytest.FixtureRequest) -> Transformer:
    made = in_float64(initialised(SHAPES[request.param], 0))
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return made


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, V, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def uncached(network: Transformer, tokens: Tensor) -> Tensor:
    return network.head(network.trunk(View(tokens, torch.arange(tokens.shape[1])[None], Attention.CAUSAL)))


@torch.no_grad()
def shown(network: Transformer, cache: Cache, tokens: Tensor, slots: Tensor, positions: Tensor | None = None) -> Tensor:
    """Logits of the next part of a text, whose tokens go to `slots`, in order of which they see each other."""
    positions = slots if positions is None else positions
    held = cache.at(slots, run_of(slots) if TOLD[-1] else None)
    return network.head(network.trunk(View(tokens, positions, Attention.CAUSAL, cache=held)))


def run_of(slots: Tensor) -> slice | None:
    """What a sampler may say of slots: that every row has the same consecutive ones."""
    run = slice(int(slots[0, 0]), int(slots[0, 0]) + slots.shape[1])
    return run if bool((slots == torch.arange(run.start, run.stop)).all()) else None


TOLD = [True]


@pytest.fixture(params=[True, False], autouse=True)
def told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether the cache is told of runs: it need not be."""
    TOLD.append(request.param)
    yield
    TOLD.pop()


@pytest.mark.parametrize("parts", [[1] * LENGTH, [4, 4, 4], [5, 1, 6], [LENGTH]], ids=str)
@pytest.mark.parametrize("size", [LENGTH, LENGTH + 5])
def test_cached_is_uncached_left_to_right(network: Transformer, tokens: Tensor, parts: list[int], size: int) -> None:
    cache, start, pieces = network.cache(ROWS, size), 0, []
    for part in tokens.split(parts, 1):
        slots = torch.arange(start, start + part.shape[1]).expand(ROWS, -1)
        pieces.append(shown(network, cache, part, slots))
        start += part.shape[1]
    assert torch.allclose(torch.cat(pieces, 1), uncached(network, tokens), **CLOSE)


def test_cached_is_uncached_when_rows_are_at_different_slots(network: Transformer, tokens: Tensor) -> None:
    """Row i has seen i + 1 tokens; all are then shown two more."""
    cache, whole = network.cache(ROWS, LENGTH), uncached(network, tokens)
    for row in range(ROWS):
        # The other rows write to their last slot, which nobody looks at before its turn.
        for start in range(row + 1):
            slots = torch.full((ROWS, 1), LENGTH - 1)
            slots[row] = start
            shown(network, cache, tokens.gather(1, slots), slots)
    slots = torch.arange(1, ROWS + 1)[:, None] + torch.arange(2)
    assert torch.allclose(
        shown(network, cache, tokens.gather(1, slots), slots),
        whole.gather(1, slots[..., None].expand(-1, -1, V)),
        **CLOSE,
    )


def test_slots_are_places_in_the_order_of_generation(network: Transformer, tokens: Tensor) -> None:
    """A text seen in an order of its own: what counts is the slot, and each token keeps its place in the text."""
    order = torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(3)).argsort(1)
    with torch.no_grad():
        whole = network.head(network.trunk(View(tokens.gather(1, order), order, Attention.CAUSAL)))
    cache, pieces = network.cache(ROWS, LENGTH), []
    for slots in torch.arange(LENGTH).expand(ROWS, -1).split(3, 1):
        place = order.gather(1, slots)
        pieces.append(shown(network, cache, tokens.gather(1, place), slots, place))
    assert torch.allclose(torch.cat(pieces, 1), whole, **CLOSE)


@pytest.mark.parametrize("alike", [True, False])
def test_writing_over_a_slot_replaces_it(network: Transformer, tokens: Tensor, alike: bool) -> None:
    """The spare id is looked at first, then overwritten by the token, in the same slots or in each row's own."""
    cache, last = network.cache(ROWS, LENGTH), torch.full((ROWS, 1), LENGTH - 1)
    shown(network, cache, tokens[:, :-1], torch.arange(LENGTH - 1).expand(ROWS, -1))
    middle = torch.tensor([[4]] * ROWS) if alike else torch.tensor([[4], [5], [6]])
    shown(network, cache, torch.full_like(middle, V), middle)
    masked = shown(network, cache, tokens[:, -1:], last)
    shown(network, cache, tokens.gather(1, middle), middle)
    # Slots after the middle were computed when it held the token, and hold no trace of the mask.
    assert torch.allclose(shown(network, cache, tokens[:, -1:], last), uncached(network, tokens)[:, -1:], **CLOSE)
    assert not torch.allclose(masked, uncached(network, tokens)[:, -1:], **CLOSE)


def test_explicit_causal_pattern_is_the_causal_one(network: Transformer, tokens: Tensor) -> None:
    """A [B, Q, S] pattern over all slots, and the slots up to the last query alone, are one thing."""
    cache = network.cache(ROWS, LENGTH + 3)
    for part, slots in zip(tokens.split(4, 1), torch.arange(LENGTH).expand(ROWS, -1).split(4, 1), strict=True):
        at, implicit = cache.at(slots), shown(network, cache, part, slots)
        with torch.no_grad():
            explicit = network.head(network.trunk(View(part, slots, at.causal(), cache=at)))
        assert torch.allclose(explicit, implicit, **CLOSE)


def test_a_row_does_not_see_its_neighbours_memory(network: Transformer, tokens: Tensor) -> None:
    together, alone = network.cache(ROWS, LENGTH), network.cache(1, LENGTH)
    for start in range(LENGTH):
        slots = torch.full((ROWS, 1), start)
        company = shown(network, together, tokens[:, start : start + 1], slots)
        single = shown(network, alone, tokens[:1, start : start + 1], slots[:1])
        assert torch.allclose(company[:1], single, **CLOSE)
