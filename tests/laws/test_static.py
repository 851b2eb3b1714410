"""Calls of one shape over a cache of one size write the same tokens as calls that grow, so decoding can be compiled.

In float64: the sums run over other numbers of keys, of which the added ones weigh nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.families.base import build
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.noise.counter_rng import Key
from redraft.sampling.base import Denoiser
from redraft.sampling.base import build as build_sampler
from redraft.types import Canvas, View

V, L, ROWS = 11, 13, 3
CASES: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("ar", {}, "left_to_right", {}),
    ("esolm", {}, "ordered", {"steps": 5}),
    ("esolm", {"alpha_0": 0.5}, "ordered", {"steps": 4}),
    ("esolm", {"alpha_0": 0.0}, "ordered", {}),
    ("esolm", {}, "ordered", {"steps": 4, "order": "block"}),
    ("esolm", {}, "ordered", {"steps": 3, "order": "block_autoregressive", "super_blocks": 2}),
    ("bd3lm", {"block": 1}, "bd3lm", {}),
    ("bd3lm", {"block": 4}, "bd3lm", {"steps": 3}),
    ("bd3lm", {"block": 3}, "bd3lm", {"steps": 0}),
    ("bd3lm", {"block": 4}, "bd3lm", {"steps": 3, "context": 2}),
    ("bd3lm", {"block": 9}, "bd3lm", {"steps": 3}),
]
PROMPTS = {
    "none": torch.zeros(ROWS, L, dtype=torch.bool),
    "one token": torch.arange(L).lt(1).expand(ROWS, L),
    "a long one": torch.arange(L).lt(9).expand(ROWS, L),
    "ragged": torch.arange(L) < torch.tensor([[0], [6], [10]]),
    "holes": torch.arange(L).remainder(torch.tensor([[2], [3], [5]])) == 1,
    "all": torch.ones(ROWS, L, dtype=torch.bool),
}


def network(block: str = "dit") -> Transformer:
    made = initialised(Shape(block, 2, 2, 16, 32, V, 8 if block == "dit" else 0), 0, torch.float64).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made.eval()


@contextmanager
def shapes(net: Transformer) -> Iterator[set[tuple[Any, ...]]]:
    """Those of the calls that say that they have one shape."""
    found, plain = set[tuple[Any, ...]](), net.hidden

    def hidden(view: View, pattern: Any) -> Tensor:
        if view.static:
            found.add((view.tokens.shape, view.positions.shape, tuple(pattern.shape)))
        return plain(view, pattern)

    net.hidden = hidden  # type: ignore[method-assign]
    yield found
    net.hidden = plain  # type: ignore[method-assign]


@torch.no_grad()
def written(
    net: Transformer, case: tuple[str, dict[str, Any], str, dict[str, Any]], fixed: Tensor, static: bool
) -> Tensor:
    name, options, sampler, settings = case
    family = build(name, options, V)
    tokens = torch.randint(0, V, (ROWS, L), generator=torch.Generator().manual_seed(2))
    denoiser = Denoiser(net, family, static=static)
    return torch.stack(
        [frame.tokens for frame in build_sampler(sampler, settings, family)(denoiser, Canvas(tokens, fixed), Key.of(3))]
    )


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_static_calls_write_what_growing_ones_do(case: tuple[Any, ...], prompt: str) -> None:
    if case[0] == "ar" and prompt == "holes":
        pytest.skip("left to right cannot fill in")
    net = network("llama" if case[0] == "ar" else "dit")
    grown = written(net, case, PROMPTS[prompt], static=False)  # type: ignore[arg-type]
    with shapes(net) as found:
        static = written(net, case, PROMPTS[prompt], static=True)  # type: ignore[arg-type]
    assert torch.equal(grown, static)
    assert len(found) <= 1 and (found or prompt in ("all", "a long one", "ragged", "holes", "one token"))


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[7]], ids=str)
def test_a_whole_text_takes_one_compiled_graph(case: tuple[Any, ...]) -> None:
    """Counted where Dynamo hands graphs to a compiler; the prompt's own call is not among them."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    net, counter = network(), CompileCounter()
    eager, fused = net.hidden, torch.compile(net.hidden, backend=counter)
    net.hidden = lambda view, pattern: (fused if view.static else eager)(view, pattern)  # type: ignore[method-assign]
    for prompt in ("none", "one token", "a long one"):
        written(net, case, PROMPTS[prompt], static=True)  # type: ignore[arg-type]
        assert counter.frame_count == 1
        if case[0] != "ar":
            break  # the calls of another text may have another width
    assert counter.frame_count == 1
