"""LLaDA (arXiv:2502.09992): OLMo's Llama with attention both ways. Everything that is not in the tensors is in config.json.

[MASK] is an id in the middle of its vocabulary, and its own code leaves it in the softmax: so do we, and log p is the same.
"""

from __future__ import annotations

import math

from redraft.errors import UserError
from redraft.hub.convert.layouts.facts import Facts
from redraft.hub.convert.layouts.llama import layer_targets, outer_targets, residual_gain, rows_of
from redraft.hub.convert.layouts.plan import Choices, Plan, check_tensors
from redraft.hub.convert.layouts.vocabulary import TokenizerInfo, place
from redraft.hub.convert.source import Source
from redraft.hub.lazy_tensor import LazyTensor, all_of
from redraft.network.sizes import Shape

# What the configuration may say, and the only values under which the network is our "llama".
ONLY = {
    "block_type": ("llama",), "activation_type": ("silu",), "layer_norm_type": ("rms", "default_rms"), "alibi": (False,),
    "rope": (True,), "include_bias": (False,), "include_qkv_bias": (False,), "attention_layer_norm": (False,),
    "multi_query_attention": (False,), "block_group_size": (1,), "layer_norm_with_affine": (True,),
    "bias_for_layer_norm": (False,), "clip_qkv": (),
}  # fmt: skip

PARTS = {"norm1": "attn_norm", "out": "attn_out", "norm2": "ff_norm", "mlp.gate": "ff_proj", "mlp.up": "up_proj",
         "mlp.down": "ff_out"}  # fmt: skip


def names(depth: int, width: int, hidden: int, rows: int, keys: int, tied: bool) -> dict[str, tuple[int, ...]]:
    want: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (rows, width)}
    for i in range(depth):
        b = f"transformer.blocks.{i}."
        want |= {f"{b}attn_norm.weight": (width,), f"{b}ff_norm.weight": (width,), f"{b}q_proj.weight": (width, width)}
        want |= {f"{b}k_proj.weight": (keys, width), f"{b}v_proj.weight": (keys, width)}
        want[f"{b}attn_out.weight"] = (width, width)
        want |= {f"{b}ff_proj.weight": (hidden, width), f"{b}up_proj.weight": (hidden, width)}
        want[f"{b}ff_out.weight"] = (width, hidden)
    want["transformer.ln_f.weight"] = (width,)
    return want if tied else want | {"transformer.ff_out.weight": (rows, width)}


def plan(
    source: Source, have: dict[str, LazyTensor], depth: int, facts: Facts, choices: Choices, speaker: TokenizerInfo
) -> Plan:
    """The whole conversion. `have`: the network's tensors by their names, without prefix."""
    notes: list[str] = []
    facts.check(source.path, ONLY)
    rows, width = have["transformer.wte.weight"].shape
    hidden = rows_of(have, "transformer.blocks.0.ff_proj.weight", 4 * width)
    keys = rows_of(have, "transformer.blocks.0.k_proj.weight", width)
    said, own = bool(facts.flag("weight_tying", "tie_word_embeddings")), "transformer.ff_out.weight" in have
    tied = said and not own
    check_tensors(source.path, have, names(depth, width, hidden, rows, keys, tied))
    heads, groups = _heads(source, facts, choices, width, keys)
    if tied:
        notes.append("the head is the embedding (tied), and becomes a copy of it")
    elif said:
        notes.append(
            "its configuration says that the head is the embedding (tied), and the file holds a head: that is taken"
        )
    vocab = place(rows, rows, choices.family or "mdlm", facts, choices, speaker, notes, keeps_mask=True)
    gain = _gain(facts, notes)
    theta = facts.real("rope_theta") or 10000.0
    if not facts.has("rope_theta"):
        notes.append("the rotary base is taken to be 10000")
    shape = Shape("llama", depth, heads, width, hidden, vocab.size, 0, theta, kv_heads=groups % heads)
    head = have["transformer.wte.weight" if tied else "transformer.ff_out.weight"]
    targets = outer_targets(
        have["transformer.wte.weight"], have["transformer.ln_f.weight"], head, vocab,
        gain * (math.sqrt(width) if facts.flag("input_emb_norm") else 1.0),
        1 / math.sqrt(width) if facts.flag("scale_logits") else 1.0,
    )  # fmt: skip
    for i in range(depth):
        b = f"transformer.blocks.{i}."
        parts = {ours: have[f"{b}{theirs}.weight"] for ours, theirs in PARTS.items()}
        targets |= layer_targets(i, parts, [all_of(have[f"{b}{part}_proj.weight"]) for part in "qkv"], gain, b)
    length = choices.length or facts.number("max_sequence_length") or 4096
    family = choices.family or "mdlm"
    return Plan("llada", family, dict(choices.options), shape, length, targets, vocab.mask, vocab.silent, notes)


def _heads(source: Source, facts: Facts, choices: Choices, width: int, keys: int) -> tuple[int, int]:
    heads = choices.heads or facts.heads(source.path, "n_heads")
    groups = keys // (width // heads) if width % heads == 0 else 0
    if not groups or heads % groups or groups * (width // heads) != keys:
        raise UserError(
            f"{source.path} has {keys} rows of keys, which {heads} heads of width {width} do not fit: give --heads"
        )
    return heads, groups


def _gain(facts: Facts, notes: list[str]) -> float:
    said = facts.real("rms_norm_eps", "layer_norm_eps")
    eps = 1e-5 if said is None else said
    if not eps > 0:
        raise UserError(f"its configuration says that norms add {eps:g}: only a number above 0 can be followed")
    if (gain := residual_gain(eps)) != 1.0:
        notes.append(
            f"its norms add {eps:g}, ours 1e-05: what is written to the residual stream is scaled by {gain:.4g}"
        )
    return gain
