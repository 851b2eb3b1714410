"""The FLOPs ledger: parameters and FLOPs by group, under named counting conventions. No torch.

A multiply-add is 2 FLOPs; training is 3 times the forward pass; elementwise work is not counted. The head is counted on
every token, whether or not a family heads only some rows, so that equal budgets mean equal networks and equal tokens.

  6ND          6 x (parameters outside the embedding and head tables); SMDM (arXiv:2410.18514), Kaplan
  blocks+head  3 x 2 (block matrices + V d): as the profiler of arXiv:2602.15014 counts: no attention
  full         blocks+head, and attention scores and values at 4 L d a layer, d the width of all heads of queries (a causal
               mask saves nothing here, as in torch's own counter), and the adaLN matrices, once a sequence
"""

from __future__ import annotations

from typing import get_args

from redraft.config import Convention
from redraft.errors import unknown
from redraft.network.sizes import Shape

CONVENTIONS: tuple[str, ...] = get_args(Convention)


def parameters(shape: Shape) -> dict[str, int]:
    """Parameters by group. `outside the embedding` (what studies plot) is the total without the group `embedding`, to which
    learned positions belong; a head that is the embedding (tied) has none."""
    d, n, c = shape.width, shape.depth, shape.cond
    groups = {
        "embedding": (shape.vocab + 1 + shape.context) * d,
        "blocks": shape.block_weights,
        "norms": (2 * n + 1) * d,
    }
    groups["head"] = 0 if shape.tied else shape.vocab * d
    if shape.block != "llama":
        groups["blocks"] += n * (shape.hidden + d)  # MLP biases
    if shape.block == "dit":
        groups["head"] += shape.vocab  # output bias
    if shape.block == "gpt2":
        groups["norms"] *= 2  # biases
        groups["blocks"] += n * d  # of the way out
    if shape.qkv_biased:
        groups["blocks"] += n * (shape.heads + 2 * shape.keys) * shape.head
    if shape.qk_norm:
        groups["norms"] += 2 * n * shape.head
    if shape.adaln:
        groups["modulation"] = (256 * c + c) + (c * c + c) + n * 6 * d * (c + 1) + 2 * d * (c + 1)
    return groups


def non_embedding(shape: Shape) -> int:
    """Parameters without the input embedding: head included, as plotted by arXiv:2602.15014."""
    groups = parameters(shape)
    return sum(groups.values()) - groups["embedding"]


def forward_flops(shape: Shape, length: int) -> dict[str, float]:
    """FLOPs of the forward pass per token by group, everything counted (`full`), for rows of `length` tokens."""
    d, n, c = shape.width, shape.depth, shape.cond
    groups = {
        "blocks": 2.0 * shape.block_weights,
        "attention": 4.0 * length * shape.heads * shape.head * n,
        "head": 2.0 * shape.vocab * d,
    }
    if shape.adaln:
        groups["modulation"] = 2.0 * (256 * c + c * c + n * 6 * d * c + 2 * d * c) / length
    return groups


def training_flops_per_token(
    shape: Shape, length: int, convention: str, passes: float = 1.0, effort: float = 1.0
) -> float:
    """FLOPs that training spends on one token of text under a named convention.

    `passes`: tokens the trunk reads for each token of text (Eso-LM's sequential phase reads more than one). `effort`: the
    cost of a step relative to one forward and backward pass (4/3 in distillation, for the teacher's forward pass).
    """
    if convention not in CONVENTIONS:
        raise unknown("FLOPs convention", convention, CONVENTIONS)
    if convention == "6ND":
        counts = parameters(shape)
        return 6.0 * effort * passes * (sum(counts.values()) - counts["embedding"] - counts["head"])
    groups = forward_flops(shape, round(length * passes))
    if convention == "blocks+head":
        return 3.0 * effort * (passes * groups["blocks"] + groups["head"])
    modulation = groups.get("modulation", 0.0)
    return 3.0 * effort * (passes * (groups["blocks"] + groups["attention"] + modulation) + groups["head"])
