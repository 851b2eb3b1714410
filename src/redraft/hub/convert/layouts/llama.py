"""What the two Llama layouts share: how a block's tensors become ours, whatever they are called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from redraft.errors import UserError
from redraft.hub.convert.layouts.plan import spare_of
from redraft.hub.convert.layouts.vocabulary import Vocabulary
from redraft.hub.lazy_tensor import LazyTensor, Piece, Target, all_of, stacked

EPS = 1e-5  # of our RMSNorm


def residual_gain(eps: float) -> float:
    """What the residual stream is multiplied by, so that norms with another epsilon come out the same.

    g x / sqrt(mean (g x)^2 + 1e-5) = x / sqrt(mean x^2 + eps) where g^2 = 1e-5 / eps.
    """
    if eps <= 0:
        raise UserError(f"its norms have an epsilon of {eps}")
    return 1.0 if math.isclose(eps, EPS, rel_tol=1e-6) else math.sqrt(EPS / eps)


def layer_targets(
    i: int, parts: Mapping[str, LazyTensor], qkv: Sequence[Piece], gain: float, origin: str
) -> dict[str, Target]:
    """`parts`: a block's tensors by our names; `qkv`: each head's rows in turn. Only what is added to the residual stream
    feels its gain."""
    gains = {"out": gain, "mlp.down": gain}
    targets = {ours: stacked(all_of(tensor, gains.get(ours, 1.0)), origin=origin) for ours, tensor in parts.items()}
    targets["qkv"] = stacked(*qkv, origin=origin)
    return {f"blocks.{i}.{ours}.weight": target for ours, target in targets.items()}


def rows_of(have: Mapping[str, LazyTensor], name: str, otherwise: int) -> int:
    """The rows of a tensor; `otherwise` where it is missing, which is told later."""
    return have[name].shape[0] if name in have and have[name].shape else otherwise


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
