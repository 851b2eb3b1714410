"""Every pattern that a family makes is the same as FlexAttention's block mask and as the dense mask of SDPA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from redraft.families.base import build
from redraft.network import transformer
from redraft.network.attention import block_mask, prepared
from redraft.network.init import initialised
from redraft.network.padding import reading
from redraft.network.sizes import Shape
from redraft.noise.counter_rng import Key
from redraft.types import Attention, Batch, Pattern

V, L, ROWS = 7, 150, 3  # more than one block of 128, and not a whole number of them
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("ar", {}),
    ("mdlm", {}),
    ("duo", {}),
    ("esolm", {"alpha_0": 1.0}),
    ("esolm", {"alpha_0": 0.3}),
    ("esolm", {"alpha_0": 0.0}),
    ("esolm", {"alpha_0": 1.0, "variant": "A"}),
    ("esolm", {"alpha_0": 0.3, "variant": "A"}),
    ("bd3lm", {"block": 1}),
    ("bd3lm", {"block": 4}),
    ("bd3lm", {"block": 64}),
]
READ = {
    "whole rows": {},
    "padded rows": {"lengths": torch.tensor([150, 9, 130])},
    "documents": {"documents": (torch.arange(L) // torch.tensor([[150], [60], [7]]))},
}


def patterns(
    family: tuple[str, dict[str, Any]], read: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pattern]:
    """Those that reach attention while the family's loss and bound are computed."""
    found: list[Pattern] = []

    def noting(pattern: Any, *others: Any) -> Any:
        if isinstance(pattern, Pattern):
            found.append(pattern)
        return prepared(pattern, *others)

    monkeypatch.setattr(transformer, "prepared", noting)
    network = initialised(Shape("llama", 1, 2, 8, 8, V, 0), 0)
    scored = torch.arange(L) < read.get("lengths", torch.full((ROWS,), L))[:, None]
    batch = Batch(torch.zeros(ROWS, L, dtype=torch.int64), scored, torch.arange(ROWS), **read)
    with torch.no_grad():
        for loss in (made := build(*family, V)).loss, made.nelbo:
            progress = {"progress": 0.0} if loss == made.loss else {}
            loss(reading(network, batch), batch, key=Key.of(0), **progress)  # type: ignore[operator]
    yield from found


def elementwise(mask: BlockMask, pattern: Pattern) -> Tensor:
    """[B, Q, K] what the kernel looks at: full blocks, the rule inside partial ones, nothing elsewhere."""
    rows, queries, keys = pattern.shape
    size = mask.BLOCK_SIZE[0]
    seen = torch.zeros(rows, -(-queries // size) * size, -(-keys // size) * size, dtype=torch.bool)
    inside = F.pad(pattern.dense("cpu"), (0, seen.shape[2] - keys, 0, seen.shape[1] - queries))
    kinds = (mask.kv_num_blocks, mask.kv_indices, False), (mask.full_kv_num_blocks, mask.full_kv_indices, True)
    for count, indices, full in kinds:
        for row in range(rows):
            for q in range(count.shape[2]):
                for k in indices[row, 0, q, : count[row, 0, q]].tolist():
                    part = row, slice(q * size, (q + 1) * size), slice(k * size, (k + 1) * size)
                    seen[part] = True if full else inside[part]
    return seen[:, :queries, :keys]


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_block_masks_are_the_dense_masks(
    family: tuple[str, dict[str, Any]], read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pattern in patterns(family, READ[read], monkeypatch):
        dense = pattern.dense("cpu")
        assert dense.shape == pattern.shape and dense.any(-1).all()  # no query without a key
        assert torch.equal(elementwise(block_mask(pattern, torch.device("cpu")), pattern), dense)


def test_patterns_that_depend_on_no_text_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (list(patterns(("bd3lm", {"block": 4}), {}, monkeypatch)) for _ in range(2))
    assert first[0] is second[0] and first[0].kept


@pytest.mark.parametrize("attention", [Attention.CAUSAL, "rule"])
def test_flex_attention_computes_what_sdpa_does(attention: Any) -> None:
    """In float64, to 1e-12: sums of at most 150 terms of order 1."""
    rule = Pattern(lambda b, q, k: (k <= q) & ((b + q + k) % 3 != 1) | (k == q), (2, L, L))
    q, k, v = torch.randn(3, 2, 2, L, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pattern = rule if attention == "rule" else Pattern(lambda b, q, k: k <= q, (1, L, L))
    with torch.no_grad():
        flex = flex_attention(q, k, v, block_mask=block_mask(pattern, torch.device("cpu")))
        mask = prepared(pattern, torch.device("cpu"), torch.float64, 16)
        plain = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
    assert torch.allclose(flex, plain, rtol=1e-12, atol=1e-12)  # type: ignore[arg-type]
