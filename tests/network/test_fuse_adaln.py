"""A folded network is the network it came from."""

from __future__ import annotations

import pytest
import torch

from redraft.network.fuse_adaln import fuse_adaln
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.types import Attention, View
from tests.rounding import CLOSE, in_float64

V = 13


@pytest.mark.parametrize("attention", list(Attention))
@pytest.mark.parametrize(("block", "cond"), [("dit", 8), ("dit", 0), ("llama", 0)])
def test_folding_changes_no_logit(block: str, cond: int, attention: Attention) -> None:
    network = in_float64(initialised(Shape(block, 3, 2, 16, 64, V, cond), 0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    tokens = torch.randint(0, V + 1, (3, 10), generator=generator)
    view = View(tokens, torch.arange(10)[None], attention)
    plain = fuse_adaln(network)
    with torch.no_grad():
        before, after = (net.head(net.trunk(view)) for net in (network, plain))
    assert torch.allclose(before, after, **CLOSE)
    assert plain.time is None and (plain is network) == (cond == 0)


def test_folding_leaves_the_original_as_it_was() -> None:
    network = initialised(Shape("dit", 2, 2, 16, 64, V, 8), 0)
    before = {name: p.clone() for name, p in network.named_parameters()}
    plain = fuse_adaln(network)
    for name, p in plain.named_parameters():
        if name != "embedding":  # shared
            p.data.zero_()
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())


@pytest.mark.parametrize("block", ["dit", "llama"])
def test_matrices_kept_narrow_give_the_same_numbers(block: str) -> None:
    """What was cast at every call is cast once: half the bytes, not a bit of another number."""
    network = initialised(Shape(block, 2, 2, 32, 128, 50, 8 if block == "dit" else 0), 0, torch.bfloat16)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    view = View(torch.arange(20).view(2, 10), torch.arange(10)[None], Attention.FULL)
    before = network.trunk(view), network.head(network.trunk(view)[0])
    narrow = network.narrow()
    assert narrow.output.weight.dtype == torch.bfloat16 and narrow.embedding.dtype == torch.float32
    assert torch.equal(narrow.trunk(view), before[0]) and torch.equal(narrow.head(narrow.trunk(view)[0]), before[1])
