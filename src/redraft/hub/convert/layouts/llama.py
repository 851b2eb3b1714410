"""What the two Llama layouts share: how a block's tensors become ours, whatever they are called."""

from __future__ import annotations

import math
from dataclasses import dataclass

from redraft.errors import UserError
from redraft.hub.convert.layouts.plan import spare_of
from redraft.hub.convert.layouts.vocabulary import Vocabulary
from redraft.hub.lazy_tensor import LazyTensor, Piece, Target, all_of, stacked

EPS = 1e-5  # of our RMSNorm


@dataclass(frozen=True)
class Layer:
    """A block's tensors; `q`, `k` and `v` each head's rows in turn."""

    norm1: LazyTensor
    q: list[Piece]
    k: list[Piece]
    v: list[Piece]
    out: LazyTensor
    norm2: LazyTensor
    gate: LazyTensor
    up: LazyTensor
    down: LazyTensor


def residual_gain(eps: float) -> float:
    """What the residual stream is multiplied by, so that norms with another epsilon come out the same.

    g x / sqrt(mean (g x)^2 + 1e-5) = x / sqrt(mean x^2 + eps) where g^2 = 1e-5 / eps.
    """
    if eps <= 0:
        raise UserError(f"its norms have an epsilon of {eps}")
    return 1.0 if math.isclose(eps, EPS, rel_tol=1e-6) else math.sqrt(EPS / eps)


def layer_targets(i: int, layer: Layer, gain: float, origin: str) -> dict[str, Target]:
    """Only what is added to the residual stream feels its gain."""
    b = f"blocks.{i}."
    return {
        f"{b}norm1.weight": stacked(all_of(layer.norm1), origin=origin),
        f"{b}norm2.weight": stacked(all_of(layer.norm2), origin=origin),
        f"{b}qkv.weight": stacked(*layer.q, *layer.k, *layer.v, origin=origin),
        f"{b}out.weight": stacked(all_of(layer.out, gain), origin=origin),
        f"{b}mlp.gate.weight": stacked(all_of(layer.gate), origin=origin),
        f"{b}mlp.up.weight": stacked(all_of(layer.up), origin=origin),
        f"{b}mlp.down.weight": stacked(all_of(layer.down, gain), origin=origin),
    }


def outer_targets(
    embedding: LazyTensor, norm: LazyTensor, head: LazyTensor, vocab: Vocabulary, embed_gain: float, head_gain: float
) -> dict[str, Target]:
    """Embedding with its spare row, last norm, and the head's rows of the text ids."""
    return {
        "embedding": stacked(*spare_and_rows(embedding, vocab, embed_gain), origin="transformer.wte.weight"),
        "norm.weight": stacked(all_of(norm), origin="transformer.ln_f.weight"),
        "output.weight": stacked(Piece(head, 0, vocab.size, head_gain), origin="the head"),
    }


def spare_and_rows(embedding: LazyTensor, vocab: Vocabulary, gain: float = 1.0) -> tuple[Piece, Piece]:
    """The rows of the text ids, and the spare one: a copy of one of them, or zeros."""
    rows, spare = Piece(embedding, 0, vocab.size, gain), all_of(spare_of(embedding))
    if vocab.spare is not None:
        spare = Piece(embedding, vocab.spare, vocab.spare + 1, gain)
    return rows, spare
