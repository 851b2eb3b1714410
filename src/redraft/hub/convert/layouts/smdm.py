"""SMDM (arXiv:2410.18514): lit-gpt's Llama, AR or masked. One matrix holds q, k and v, interleaved group by group.

The masked model has one embedding more than the head has rows: [MASK]. Neither the family's name nor the number of heads is
stored: the first is in the rows, the second in the paper's table.
"""

from __future__ import annotations

import re

from redraft.errors import UserError
from redraft.hub.convert.layouts.facts import Facts
from redraft.hub.convert.layouts.llama import layer_targets, outer_targets, rows_of
from redraft.hub.convert.layouts.plan import Choices, Plan, check_tensors
from redraft.hub.convert.layouts.vocabulary import TokenizerInfo, place
from redraft.hub.convert.source import Source
from redraft.hub.lazy_tensor import LazyTensor, Piece
from redraft.network.sizes import LADDER, Shape

LENGTH = 2048  # every published model's
HEADS = {(depth, width, 1600 if name == "75M" else 4 * width): heads for name, (depth, heads, width) in LADDER.items()}

PARTS = {"norm1": "norm_1", "out": "attn.proj", "norm2": "norm_2", "mlp.gate": "mlp.swiglu.w1", "mlp.up": "mlp.swiglu.w2",
         "mlp.down": "mlp.swiglu.w3"}  # fmt: skip


def names(depth: int, width: int, hidden: int, rows: int, head: int, fused: int) -> dict[str, tuple[int, ...]]:
    want: dict[str, tuple[int, ...]] = {"lm_head.weight": (head, width), "transformer.wte.weight": (rows, width)}
    for i in range(depth):
        b = f"transformer.h.{i}."
        want |= {f"{b}norm_1.weight": (width,), f"{b}attn.attn.weight": (fused, width)}
        want |= {f"{b}attn.proj.weight": (width, width), f"{b}norm_2.weight": (width,)}
        want |= {f"{b}mlp.swiglu.w1.weight": (hidden, width), f"{b}mlp.swiglu.w2.weight": (hidden, width)}
        want[f"{b}mlp.swiglu.w3.weight"] = (width, hidden)
    return want | {"transformer.ln_f.weight": (width,)}


def plan(
    source: Source, have: dict[str, LazyTensor], depth: int, facts: Facts, choices: Choices, speaker: TokenizerInfo
) -> Plan:
    """The whole conversion. `have`: the network's tensors by their names, without prefix."""
    notes: list[str] = []
    if "lm_head.weight" not in have and facts.flag("tie_word_embeddings", "weight_tying"):
        have = {**have, "lm_head.weight": have["transformer.wte.weight"]}
        notes.append("the head is the embedding (tied), and becomes a copy of it")
    rows, width = have["transformer.wte.weight"].shape
    head = have["lm_head.weight"].shape[0] if "lm_head.weight" in have else rows
    hidden = rows_of(have, "transformer.h.0.mlp.swiglu.w1.weight", 4 * width)
    fused = rows_of(have, "transformer.h.0.attn.attn.weight", 3 * width)
    check_tensors(source.path, have, names(depth, width, hidden, rows, head, fused))
    heads = _heads(source, facts, choices, depth, width, hidden, notes)
    family = choices.family or ("mdlm" if rows == head + 1 else "ar")
    if not choices.family:
        notes.append(
            f"{rows} embeddings for {head} logits: {'masked, family mdlm' if family == 'mdlm' else 'family ar'}"
        )
    if family == "ar" and choices.mask is None:
        choices = Choices(**{**vars(choices), "mask": -1})
    vocab = place(rows, head, family, facts, choices, speaker, notes, keeps_mask=rows == head)
    theta, groups = facts.real("rope_base", "rope_theta") or 10000.0, _groups(fused, width, heads)
    shape = Shape("llama", depth, heads, width, hidden, vocab.size, 0, theta, kv_heads=groups % heads)
    targets = outer_targets(
        have["transformer.wte.weight"], have["transformer.ln_f.weight"], have["lm_head.weight"], vocab, 1.0, 1.0
    )
    for i in range(depth):
        b = f"transformer.h.{i}."
        parts = {ours: have[f"{b}{theirs}.weight"] for ours, theirs in PARTS.items()}
        targets |= layer_targets(i, parts, _heads_of(have, b, heads, source), 1.0, b)
    length = choices.length or facts.number("block_size") or LENGTH
    return Plan("smdm", family, dict(choices.options), shape, length, targets, vocab.mask, vocab.silent, notes)


def _heads(
    source: Source, facts: Facts, choices: Choices, depth: int, width: int, hidden: int, notes: list[str]
) -> int:
    if heads := choices.heads or facts.number("n_head", "n_heads"):
        return heads
    if (depth, width, hidden) not in HEADS:
        raise UserError(
            f"{source.path} is of no size of SMDM's table ({depth} blocks, width {width}), and its tensors do not tell "
            f"the number of heads: give --heads"
        )
    size = re.search(r"-(\d+M)[-.]", source.path.name)
    named = f", the network {size[1]}" if size and size[1] in LADDER else ""
    notes.append(f"{HEADS[depth, width, hidden]} heads, as in SMDM's table{named} (else give --heads)")
    return HEADS[depth, width, hidden]


def _groups(fused: int, width: int, heads: int) -> int:
    """Heads of keys in a fused matrix of so many rows."""
    size = width // heads
    return (fused // size - heads) // 2 if size else 0


def _heads_of(have: dict[str, LazyTensor], b: str, heads: int, source: Source) -> list[Piece]:
    """Rows of the fused matrix: for each group, its queries' heads, then its key's and its value's."""
    fused, width = have[f"{b}attn.attn.weight"], have[f"{b}attn.attn.weight"].shape[1]
    size, groups = width // heads, _groups(fused.shape[0], width, heads)
    if width % heads or groups < 1 or heads % groups or fused.shape[0] != (heads + 2 * groups) * size:
        raise UserError(
            f"{source.path} has a {b}attn.attn.weight of {fused.shape[0]} rows, which {heads} heads do not fit: give --heads"
        )
    queries = heads // groups

    def part(h: int, after: int) -> Piece:
        start = (h // queries * (queries + 2) + after) * size
        return Piece(fused, start, start + size)

    queries_of = [part(h, h % queries) for h in range(heads)]
    keys, values = ([part(g * queries, queries + after) for g in range(groups)] for after in (0, 1))
    return [*queries_of, *keys, *values]
