"""Documents in one row: each is what it would be alone, whatever the family's order or pattern."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.network.init import initialised
from redraft.network.padding import Within, of_rows
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.types import Attention, View
from tests.rounding import CLOSE, in_float64

ENDS = [(4, 9), (1, 12)]  # where the documents of two rows of 12 end; the second row's fill it
LENGTH, VOCAB = 12, 11


@pytest.fixture(scope="module", params=["dit", "llama"])
def network(request: pytest.FixtureRequest) -> Transformer:
    cond = 8 if request.param == "dit" else 0
    made = in_float64(initialised(Shape(request.param, 2, 2, 16, 32, VOCAB, cond), 0))
    with torch.no_grad():  # fresh adaLN is closed: open it, or nothing would mix
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return made


def documents() -> Tensor:
    place = torch.arange(LENGTH)
    return torch.stack([sum((place >= end).long() for end in ends) for ends in ENDS])  # type: ignore[arg-type]


def tokens() -> Tensor:
    return torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(2))


def parts() -> list[tuple[int, slice]]:
    out = []
    for row, ends in enumerate(ENDS):
        edges = [0, *ends, LENGTH]
        out += [(row, slice(a, b)) for a, b in zip(edges, edges[1:]) if b > a]
    return out


def view(text: Tensor, positions: Tensor, attention: Any) -> View:
    return View(text, positions, attention, sigma=torch.full((len(text), 1), 0.7))


@pytest.mark.parametrize("attention", [Attention.FULL, Attention.CAUSAL])
def test_a_document_in_company_is_the_document_alone(network: Transformer, attention: Attention) -> None:
    """Alone it begins at position 0: rotary attention sees differences, so the numbers agree to rounding."""
    text, places = tokens(), torch.arange(LENGTH)[None]
    together = network.head(Within(network, documents()).trunk(view(text, places, attention)))
    crossing = network.head(network.trunk(view(text, places, attention)))
    for row, part in parts():
        own = text[row : row + 1, part]
        alone = network.head(network.trunk(view(own, torch.arange(own.shape[1])[None], attention)))
        torch.testing.assert_close(together[row, part], alone[0], **CLOSE)
        if part.start or attention is Attention.FULL:  # the law can fail: without the mask it does
            assert (crossing[row, part] - alone[0]).abs().max() > 1e-3


def test_documents_hold_in_any_order_and_under_any_pattern(network: Transformer) -> None:
    """As Eso-LM's shuffled rows: positions are permuted, the pattern is the family's own."""
    text, order = (
        tokens(),
        torch.stack([torch.randperm(LENGTH, generator=torch.Generator().manual_seed(i)) for i in (3, 4)]),
    )
    pattern = torch.ones(LENGTH, LENGTH).tril().bool().expand(2, -1, -1)
    shuffled = text.gather(1, order)
    together = Within(network, documents()).trunk(view(shuffled, order, pattern))
    for row, part in parts():
        mine = (order[row] >= part.start) & (order[row] < part.stop)
        own, places = shuffled[row][mine][None], order[row][mine][None]
        alone = network.trunk(view(own, places, torch.ones(own.shape[1], own.shape[1]).tril().bool()[None]))
        torch.testing.assert_close(together[row][mine], alone[0], **CLOSE)


def test_some_rows_of_a_batch_keep_their_own_documents(network: Transformer) -> None:
    text, places, second = tokens(), torch.arange(LENGTH)[None], torch.tensor([False, True])
    whole = Within(network, documents()).trunk(view(text, places, Attention.FULL))
    part = of_rows(Within(network, documents()), second).trunk(view(text[second], places, Attention.FULL))
    torch.testing.assert_close(part[0], whole[1], **CLOSE)
