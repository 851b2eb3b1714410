"""Predictions one place earlier: the same family on the same network, whose rows stand one place later."""

from __future__ import annotations

import pytest
import torch

from redraft.families.base import build, full_view
from redraft.network.init import initialised
from redraft.network.padding import Padded, Within
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.serving.merge import trunks
from tests.rounding import CLOSE, in_float64

V = 9


@pytest.fixture(scope="module")
def network() -> Transformer:
    return in_float64(initialised(Shape("llama", 2, 2, 16, 24, V, 0), 0))


@torch.no_grad()
@pytest.mark.parametrize("name", ["mdlm", "duo"])
def test_each_row_is_that_of_the_place_before(network: Transformer, name: str) -> None:
    tokens = torch.randint(0, V, (2, 6), generator=torch.Generator().manual_seed(0))
    plain, shifted = (build(name, {"shift": shift}, V) for shift in (False, True))
    t = torch.full((2, 1), 0.5, dtype=torch.float64)
    here, before = (network.trunk(family.view(tokens, t)) for family in (plain, shifted))
    assert torch.equal(before[:, 1:], here[:, :-1])
    assert torch.equal(before[:, 0], here[:, 0])


@torch.no_grad()
def test_documents_and_padding_are_shifted_each_alone(network: Transformer) -> None:
    tokens = torch.randint(0, V, (1, 7), generator=torch.Generator().manual_seed(0))
    first, second = (network.trunk(full_view(part, shifted=True)) for part in tokens.split([3, 4], 1))
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    both = Within(network, documents).trunk(full_view(tokens, shifted=True))
    assert torch.allclose(both, torch.cat([first, second], 1), **CLOSE)  # rotary angles know differences only
    padded = Padded(network, torch.tensor([3])).trunk(full_view(tokens, shifted=True))
    assert torch.allclose(padded[:, :3], first, **CLOSE)


@torch.no_grad()
def test_texts_served_together_are_shifted_each_alone(network: Transformer) -> None:
    views = [full_view(torch.randint(0, V, (1, n)), shifted=True) for n in (4, 5)]
    for alone, found in zip([network.trunk(view) for view in views], trunks(network, views), strict=True):
        assert torch.allclose(found, alone, **CLOSE)
