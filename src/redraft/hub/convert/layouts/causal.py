"""Layouts of `transformers`' causal language models on Llama's block, and of the diffusion models that were made of them.

  llama, mistral, qwen2, qwen3   AR: Llama, TinyLlama, SmolLM2, Mistral, Qwen2 and 2.5, Qwen3
  dream, diffullama              masked, attention both ways, predictions shifted by one (arXiv:2508.15487, arXiv:2410.17891)
  sdar                           masked in blocks (arXiv:2510.06303)

Sizes are in config.json; what is in it and not followed here is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redraft.errors import UserError
from redraft.hub.convert.layouts.beginning import beginning
from redraft.hub.convert.layouts.facts import Facts
from redraft.hub.convert.layouts.llama import spare_and_rows
from redraft.hub.convert.layouts.plan import Choices, Plan, check_tensors
from redraft.hub.convert.layouts.scaling import scaling_of, theta_of
from redraft.hub.convert.layouts.vocabulary import TokenizerInfo, Vocabulary, place
from redraft.hub.convert.source import Source
from redraft.hub.lazy_tensor import LazyTensor, Target, all_of, stacked
from redraft.network.sizes import Shape


@dataclass(frozen=True)
class Kind:
    """What a model type adds to Llama's block, and what family it is. `block`: of block diffusion, where nothing tells."""

    family: str = "ar"
    qkv_bias: bool = False
    qk_norm: bool = False
    shift: bool = False
    block: int = 0


KINDS = {
    "llama": Kind(),
    "mistral": Kind(),
    "qwen2": Kind(qkv_bias=True),
    "qwen3": Kind(qk_norm=True),
    "dream": Kind("mdlm", qkv_bias=True, shift=True),
    "diffullama": Kind("mdlm", shift=True),
    "sdar": Kind("bd3lm", qk_norm=True, block=4),
}
# What else a configuration may say, and the only values under which the network is ours.
ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "partial_rotary_factor": (1, 1.0),
    "use_qk_norm": (False,), "residual_multiplier": (1, 1.0), "quantization_config": (), "num_local_experts": (),
    "full_attn_mod": (), "no_rope_layers": (),
}  # fmt: skip
PARTS = ("mlp.gate", "mlp.up", "mlp.down")


def kind_of(source: Source, facts: Facts, asked: str) -> str:
    """The name of the layout, by `model_type` and the class that the configuration names."""
    if asked in KINDS:
        return asked
    said = facts.text("model_type")
    if said is None:
        raise UserError(f"{source.path} has no config.json that tells its model_type: Known: {', '.join(KINDS)}")
    classes = facts.table.get("architectures") or []
    if said == "llama" and "DiscreteDiffusionModel" in classes:
        return "diffullama"
    if said.lower() not in KINDS:
        raise UserError(f"{source.path} is of model_type {said!r}, which is not known. Known: {', '.join(KINDS)}, gpt2")
    return said.lower()


def plan(
    source: Source, have: dict[str, LazyTensor], facts: Facts, choices: Choices, speaker: TokenizerInfo, name: str
) -> Plan:
    """The whole conversion. `have`: the network's tensors by their names, without prefix."""
    kind, notes = KINDS[name], list[str]()
    facts.check(source.path, ONLY)
    length = _length(source, facts, choices)
    rows, width = (*have["embed_tokens.weight"].shape, 0)[:2]
    shape = _shape(source, facts, kind, rows, width)
    tied = _tied(source, have, facts, notes)
    check_tensors(source.path, have, names(shape, rows, tied))
    family = choices.family or kind.family
    options = _options(family, kind, facts, choices)
    if family == "ar" and choices.mask is None:
        choices = Choices(**{**vars(choices), "mask": -1})
    if family == "ar":
        options |= {"bos": beginning(source, rows, facts, choices, speaker, notes)}
        vocab = Vocabulary(rows, None, None, ())
    else:
        vocab = place(rows, rows, family, facts, choices, speaker, notes, keeps_mask=True)
    shape = Shape(**{**vars(shape), "vocab": vocab.size, "tied": tied and vocab.size == rows})
    targets = _targets(have, shape, vocab, tied)
    return Plan(name, family, options, shape, length, targets, vocab.mask, vocab.silent, notes)


def _options(family: str, kind: Kind, facts: Facts, choices: Choices) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if kind.shift and family == "mdlm":
        made["shift"] = True
    if kind.block and family == "bd3lm":
        made["block"] = facts.number("block_size", "block_length") or kind.block
    return made | dict(choices.options)


def names(shape: Shape, rows: int, tied: bool) -> dict[str, tuple[int, ...]]:
    width, hidden, keys, queries = shape.width, shape.hidden, shape.keys * shape.head, shape.heads * shape.head
    want: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (rows, width), "norm.weight": (width,)}
    for i in range(shape.depth):
        b, a = f"layers.{i}.", f"layers.{i}.self_attn."
        want |= {f"{b}input_layernorm.weight": (width,), f"{b}post_attention_layernorm.weight": (width,)}
        for part, size in (("q", queries), ("k", keys), ("v", keys)):
            want[f"{a}{part}_proj.weight"] = (size, width)
            want |= {f"{a}{part}_proj.bias": (size,)} if shape.qkv_bias else {}
        want |= {f"{a}{part}_norm.weight": (shape.head,) for part in "qk" if shape.qk_norm}
        want |= {f"{a}o_proj.weight": (width, queries), f"{b}mlp.down_proj.weight": (width, hidden)}
        want |= {f"{b}mlp.{part}_proj.weight": (hidden, width) for part in ("gate", "up")}
    return want if tied else want | {"lm_head.weight": (rows, width)}


def _shape(source: Source, facts: Facts, kind: Kind, rows: int, width: int) -> Shape:
    """`UserError` where a size is missing or no size."""
    sizes = {}
    for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size"):
        said = facts.number(name)
        if said is None or not 0 < said < 1 << 20:
            raise UserError(f"{source.path} has no config.json that tells its {name}: it says {said}")
        sizes[name] = said
    heads, eps = sizes["num_attention_heads"], facts.real("rms_norm_eps")
    groups = facts.number("num_key_value_heads")
    if eps is not None and not 0 < eps <= 1:
        raise UserError(f"{source.path} says that norms add {eps:g}: only a number above 0 can be followed")
    try:
        return Shape(
            "llama", sizes["num_hidden_layers"], heads, sizes["hidden_size"], sizes["intermediate_size"], rows, 0,
            theta_of(facts), kv_heads=0 if groups in (None, heads) else groups, head_dim=_head(facts, sizes),
            qkv_bias=kind.qkv_bias, qk_norm=kind.qk_norm, eps=1e-6 if eps is None else eps,
            scaling=scaling_of(source, facts),
        )  # fmt: skip
    except (UserError, ZeroDivisionError) as error:
        raise UserError(f"{source.path} has a config.json of no network: {error}") from None


def _head(facts: Facts, sizes: dict[str, int]) -> int:
    """The width of a head where it is not that of the network divided by heads."""
    said = facts.number("head_dim")
    return 0 if said is None or said * sizes["num_attention_heads"] == sizes["hidden_size"] else said


def _length(source: Source, facts: Facts, choices: Choices) -> int:
    """Tokens in a row. A sliding window that is not wider would change what the model says."""
    length = choices.length or facts.number("max_position_embeddings") or 2048
    if "sliding_attention" in (facts.table.get("layer_types") or ()):
        raise UserError(f"{source.path} has layers of sliding_attention, which is not known here")
    window = facts.number("sliding_window")
    slides = facts.flag("use_sliding_window")
    if window is not None and slides is not False and window < length:
        raise UserError(
            f"{source.path} has a sliding_window of {window}, which is not known here: give --length {window} or less, "
            f"within which it changes nothing"
        )
    return length


def _tied(source: Source, have: dict[str, LazyTensor], facts: Facts, notes: list[str]) -> bool:
    """Whether the head is the embedding. A head in the file that differs from it is taken as it is."""
    said, own = bool(facts.flag("tie_word_embeddings")), "lm_head.weight" in have
    if not own and not said:
        raise UserError(f"{source.path} lacks lm_head.weight, and its configuration does not say that it is tied")
    if said and own:
        if _equal(have["lm_head.weight"], have["embed_tokens.weight"]):
            del have["lm_head.weight"]
            return True
        notes.append(
            "its configuration says that the head is the embedding (tied), and the file holds another: that is taken"
        )
    return not own


def _equal(one: LazyTensor, other: LazyTensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    pairs = zip(all_of(one).read(one.dtype), all_of(other).read(one.dtype), strict=True)
    return all(bool((a == b).all()) for a, b in pairs)


def _targets(have: dict[str, LazyTensor], shape: Shape, vocab: Vocabulary, tied: bool) -> dict[str, Target]:
    rows = spare_and_rows(have["embed_tokens.weight"], vocab)
    targets = {
        "embedding": stacked(*rows, origin="embed_tokens.weight"),
        "norm.weight": stacked(all_of(have["norm.weight"]), origin="norm.weight"),
    }
    if not shape.tied:
        head = have["embed_tokens.weight" if tied else "lm_head.weight"]
        targets["output.weight"] = stacked(all_of(head, rows=vocab.size), origin="the head")
    for i in range(shape.depth):
        targets |= _layer(have, shape, i)
    return targets


def _layer(have: dict[str, LazyTensor], shape: Shape, i: int) -> dict[str, Target]:
    b, theirs = f"blocks.{i}.", f"layers.{i}."
    from_ = {
        "norm1.weight": ["input_layernorm.weight"], "norm2.weight": ["post_attention_layernorm.weight"],
        "qkv.weight": [f"self_attn.{part}_proj.weight" for part in "qkv"], "out.weight": ["self_attn.o_proj.weight"],
        **{f"{part}.weight": [f"{part}_proj.weight"] for part in PARTS},
    }  # fmt: skip
    if shape.qkv_bias:
        from_["qkv.bias"] = [f"self_attn.{part}_proj.bias" for part in "qkv"]
    if shape.qk_norm:
        from_ |= {f"norm_{part}.weight": [f"self_attn.{part}_norm.weight"] for part in "qk"}
    return {
        b + ours: stacked(*(all_of(have[theirs + name]) for name in parts), origin=theirs + parts[0])
        for ours, parts in from_.items()
    }
