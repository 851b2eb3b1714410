"""GPT-2 as `transformers` stores it: matrices transposed, q, k and v in one, learned positions, the head tied."""

from __future__ import annotations

import re
from typing import Any

from redraft.errors import UserError
from redraft.hub.convert.layouts.beginning import beginning
from redraft.hub.convert.layouts.facts import Facts
from redraft.hub.convert.layouts.plan import Choices, Plan, check_tensors, spare_of
from redraft.hub.convert.layouts.vocabulary import TokenizerInfo
from redraft.hub.convert.source import Source
from redraft.hub.lazy_tensor import LazyTensor, Target, all_of, stacked
from redraft.network.sizes import Shape

ONLY: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,), "tie_word_embeddings": (True,),
}  # fmt: skip
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
PARTS = {"norm1": "ln_1", "qkv": "attn.c_attn", "out": "attn.c_proj", "norm2": "ln_2", "mlp.up": "mlp.c_fc",
         "mlp.down": "mlp.c_proj"}  # fmt: skip


def names(shape: Shape, rows: int) -> dict[str, tuple[int, ...]]:
    d, hidden = shape.width, shape.hidden
    want: dict[str, tuple[int, ...]] = {"wte.weight": (rows, d), "wpe.weight": (shape.context, d)}
    for i in range(shape.depth):
        b = f"h.{i}."
        want |= {f"{b}{norm}.{part}": (d,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
        want |= {f"{b}attn.c_attn.weight": (d, 3 * d), f"{b}attn.c_attn.bias": (3 * d,)}
        want |= {f"{b}attn.c_proj.weight": (d, d), f"{b}attn.c_proj.bias": (d,)}
        want |= {f"{b}mlp.c_fc.weight": (d, hidden), f"{b}mlp.c_fc.bias": (hidden,)}
        want |= {f"{b}mlp.c_proj.weight": (hidden, d), f"{b}mlp.c_proj.bias": (d,)}
    return want | {"ln_f.weight": (d,), "ln_f.bias": (d,)}


def plan(
    source: Source, have: dict[str, LazyTensor], depth: int, facts: Facts, choices: Choices, speaker: TokenizerInfo
) -> Plan:
    """The whole conversion. `have`: the network's tensors by their names, without prefix."""
    notes: list[str] = []
    facts.check(source.path, ONLY)
    if choices.family not in (None, "ar"):
        raise UserError(
            f"{source.path} is GPT-2, which is of family ar: it becomes another by training (redraft train --from)"
        )
    have = {name: tensor for name, tensor in have.items() if not BUFFERS.fullmatch(name) and name != "lm_head.weight"}
    rows, width = have["wte.weight"].shape
    context = have["wpe.weight"].shape[0] if "wpe.weight" in have else 1
    heads = choices.heads or facts.heads(source.path, "n_head", "num_attention_heads")
    eps = facts.real("layer_norm_epsilon") or 1e-5
    hidden = facts.number("n_inner") or 4 * width
    shape = Shape("gpt2", depth, heads, width, hidden, rows, 0, tied=True, eps=eps, context=context)
    check_tensors(source.path, have, names(shape, rows))
    bos = beginning(source, rows, facts, choices, speaker, notes)
    length = min(choices.length or context, context)
    options = {"bos": bos, **choices.options}
    return Plan("gpt2", "ar", options, shape, length - (bos != "none"), _targets(have, shape), None, (), notes)


def _targets(have: dict[str, LazyTensor], shape: Shape) -> dict[str, Target]:
    embedding = have["wte.weight"]
    targets = {
        "embedding": stacked(all_of(embedding), all_of(spare_of(embedding)), origin="wte.weight"),
        "positions": stacked(all_of(have["wpe.weight"]), origin="wpe.weight"),
    }
    pairs = [(f"blocks.{i}.{ours}", f"h.{i}.{theirs}") for i in range(shape.depth) for ours, theirs in PARTS.items()]
    for ours, theirs in [*pairs, ("norm", "ln_f")]:
        weight = have[f"{theirs}.weight"]
        targets[f"{ours}.weight"] = stacked(all_of(weight.turned if len(weight.shape) > 1 else weight), origin=theirs)
        targets[f"{ours}.bias"] = stacked(all_of(have[f"{theirs}.bias"]), origin=theirs)
    return targets
