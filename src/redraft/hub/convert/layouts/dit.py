"""The DiT of MDLM, BD3-LM, Duo, Eso-LM, GIDD and "Scaling Beyond Masked Diffusion" (arXiv:2602.15014): one set of names.

Lightning files keep the weights under `backbone.` and their moving average as a list in the order of the parameters; folders
of transformers hold that average. The network is our block "dit", tensor by tensor; adaLN may be missing (causal classes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from redraft.errors import UserError
from redraft.families.base import family_class
from redraft.hub.convert.layouts.facts import Facts
from redraft.hub.convert.layouts.plan import Choices, Plan, check_tensors, spare_of
from redraft.hub.convert.layouts.vocabulary import TokenizerInfo, Vocabulary, place
from redraft.hub.convert.source import Source
from redraft.hub.lazy_tensor import LazyTensor, Piece, Target, all_of, stacked
from redraft.network.sizes import LADDER, Shape

NEVER = -1e6  # the logit that the official code gives to [MASK]
SMALLEST = {(12, 768): 12, (24, 1024): 16}  # (blocks, width): heads of the public GPT-2-sized models
FAMILIES = {
    "ar": "ar", "mdlm": "mdlm", "subs": "mdlm", "duo": "duo", "duo_base": "duo", "distillation": "duo", "esolm": "esolm",
    "sedd": "sedd", "d3pm": "d3pm", "bd3lm": "bd3lm", "gidd": "gidd", "dit": "gidd",
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    depth: int
    width: int
    hidden: int
    rows: int
    cond: int
    waves: int


def names(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor that a network of these sizes has, in the order of its parameters."""
    d, c = sizes.width, sizes.cond
    want: dict[str, tuple[int, ...]] = {"vocab_embed.embedding": (sizes.rows, d)}
    if c:
        want |= {"sigma_map.mlp.0.weight": (c, sizes.waves), "sigma_map.mlp.0.bias": (c,)}
        want |= {"sigma_map.mlp.2.weight": (c, c), "sigma_map.mlp.2.bias": (c,)}
    for i in range(sizes.depth):
        b = f"blocks.{i}."
        want |= {f"{b}norm1.weight": (d,), f"{b}attn_qkv.weight": (3 * d, d), f"{b}attn_out.weight": (d, d)}
        want |= {f"{b}norm2.weight": (d,), f"{b}mlp.0.weight": (sizes.hidden, d), f"{b}mlp.0.bias": (sizes.hidden,)}
        want |= {f"{b}mlp.2.weight": (d, sizes.hidden), f"{b}mlp.2.bias": (d,)}
        if c:
            want |= {f"{b}adaLN_modulation.weight": (6 * d, c), f"{b}adaLN_modulation.bias": (6 * d,)}
    want |= {"output_layer.norm_final.weight": (d,), "output_layer.linear.weight": (sizes.rows, d)}
    want["output_layer.linear.bias"] = (sizes.rows,)
    if c:
        want |= {"output_layer.adaLN_modulation.weight": (2 * d, c), "output_layer.adaLN_modulation.bias": (2 * d,)}
    return want


def sizes_of(have: dict[str, LazyTensor], depth: int) -> Sizes:
    """Sizes by the first tensor that tells each; what then disagrees is a misshaped tensor."""
    rows, width = have["vocab_embed.embedding"].shape
    hidden = have["blocks.0.mlp.0.weight"].shape[0] if "blocks.0.mlp.0.weight" in have else 4 * width
    cond, waves = _pair(have, "sigma_map.mlp.0.weight")
    return Sizes(depth, width, hidden, rows, cond, waves)


def _pair(have: dict[str, LazyTensor], name: str) -> tuple[int, int]:
    if name not in have:
        return 0, 256
    shape = have[name].shape
    return (shape[0], shape[1]) if len(shape) == 2 else (0, 256)


def averaged(source: Source, have: dict[str, LazyTensor], order: list[str], notes: list[str]) -> dict[str, LazyTensor]:
    """The moving average in the place of the weights: a list in the order of the network's parameters, then others'."""
    assert source.shadow is not None
    shadow = source.shadow
    if len(shadow) < len(order):
        raise UserError(
            f"{source.path} has an EMA of {len(shadow)} tensors for a network of {len(order)}: "
            f"give --raw for the weights themselves"
        )
    filed = [name for name in have if name in set(order)]
    fitting = [
        o
        for o in (order, filed)
        if all(shadow[i].shape == have[name].shape for i, name in enumerate(o) if name in have)
    ]
    if not fitting:
        bad = next(i for i, name in enumerate(order) if shadow[i].shape != have[name].shape)
        raise UserError(
            f"{source.path} has an EMA that does not fit: its tensor {bad} is {list(shadow[bad].shape)}, and {order[bad]} is "
            f"{list(have[order[bad]].shape)}; give --raw for the weights themselves"
        )
    if filed != order:
        how = "their class" if fitting[0] is order else "the file"
        notes.append(f"the file's weights are not in their class's order: the EMA is read in the order of {how}")
    notes.append("the weights are their exponential moving average, as in the papers (--raw: the weights themselves)")
    return dict(zip(fitting[0], shadow, strict=False))


def heads_of(source: Source, prefix: str, sizes: Sizes, facts: Facts, choices: Choices, notes: list[str]) -> int:
    """By flag, configuration, the rotary buffer (half a head long), or the papers' tables."""
    said = choices.heads or facts.number("n_heads", "num_attention_heads", "model.n_heads", "n_head")
    buffer = source.tensors.get(f"{prefix}rotary_emb.inv_freq")
    counted = sizes.width // (2 * buffer.shape[0]) if buffer is not None and buffer.shape[0] else None
    if said and counted and said != counted and not choices.heads:
        raise UserError(f"{source.path} says {said} heads, and its rotary buffer {counted}: give --heads")
    if said or counted:
        return said or counted or 0
    ladder = {(depth, width): heads for depth, heads, width in LADDER.values()} | SMALLEST
    if (sizes.depth, sizes.width) not in ladder:
        raise UserError(f"{source.path} does not tell its number of heads: give --heads")
    notes.append(f"{ladder[sizes.depth, sizes.width]} heads, as in the papers' network of that depth and width")
    return ladder[sizes.depth, sizes.width]


def theta_of(source: Source, prefix: str) -> float:
    """The rotary base, by the buffer of inverse frequencies where there is one."""
    buffer = source.tensors.get(f"{prefix}rotary_emb.inv_freq")
    if buffer is None or buffer.shape[0] < 2:
        return 10000.0
    found, half = buffer.whole().double(), buffer.shape[0]
    near = 2e-2 if buffer.dtype in (torch.bfloat16, torch.float16) else 1e-4
    for base in (10000.0, round(float(found[1] ** -half), 1)):
        wanted = base ** (-torch.arange(half, dtype=torch.float64) / half)
        if torch.allclose(found, wanted, rtol=near, atol=0):
            return base
    raise UserError(f"{source.path} has rotary frequencies that are no powers of one base")


def family_of(source: Source, facts: Facts, choices: Choices, sizes: Sizes, forced: str, notes: list[str]) -> str:
    """By flag or by configuration; a network without adaLN and without a word of what it is, is the causal class."""
    if choices.family:
        return choices.family
    name = facts.text("algo.name", "parameterization", "model_type") or ""
    if forced == "gidd" or (facts.has("p_uniform") and facts.has("hidden_size")):
        return "gidd"
    causal = (
        facts.flag("causal", "causal_attention", "algo.causal_attention")
        or facts.text("backbone", "algo.backbone") == "ar"
    )
    if causal and FAMILIES.get(name.lower()) != "esolm":
        return "ar"
    if facts.number("block_size") and name.lower() in ("bd3lm", "semi_ar"):
        return "bd3lm"
    if name.lower() in FAMILIES:
        return FAMILIES[name.lower()]
    if not sizes.cond:
        notes.append(
            "it has no time conditioning (no sigma_map), as the causal classes: family ar (else give --family)"
        )
        return "ar"
    raise UserError(
        f"{source.path} does not say what it was trained as: give --family (mdlm, duo, esolm, sedd, d3pm, ...)"
    )


def options_of(family: str, facts: Facts, notes: list[str]) -> dict[str, Any]:
    """The family's settings that decide what the network is shown."""
    if family == "esolm":
        alpha_0 = facts.real("algo.alpha_0", "alpha_0")
        if alpha_0 is None:
            notes.append("alpha_0 is taken to be 1 (else give --family.alpha_0)")
        mode = facts.text("algo.diffusion_attn_mode", "diffusion_attn_mode") or "causal"
        if mode not in ("causal", "mixed2"):
            raise UserError(f"its diffusion_attn_mode {mode!r} is neither Eso-LM B (causal) nor A (mixed2)")
        return {"alpha_0": 1.0 if alpha_0 is None else alpha_0, "variant": "B" if mode == "causal" else "A"}
    if family == "bd3lm":
        block = facts.number("block_size", "algo.block_size")
        if not block:
            notes.append("blocks are taken to be of 4 tokens (else give --family.block)")
        return {"block": block or 4}
    if family == "gidd":
        share = facts.real("p_uniform", "model.p_uniform")
        if share is None:
            notes.append("p_uniform is taken to be 0 (else give --family.uniform)")
        return {"uniform": share or 0.0}
    return {}


def plan(source: Source, have: dict[str, LazyTensor], prefix: str, depth: int, facts: Facts, choices: Choices,
         speaker: TokenizerInfo, format_name: str) -> Plan:  # fmt: skip
    """The whole conversion. `have`: the network's tensors by their names, without prefix."""
    notes: list[str] = []
    if len(have["vocab_embed.embedding"].shape) != 2:
        raise UserError(f"{source.path} has an embedding of shape {list(have['vocab_embed.embedding'].shape)}")
    sizes = sizes_of(have, depth)
    want = names(sizes)
    if "output_layer.linear.weight" not in have and facts.flag("tie_word_embeddings", "weight_tying"):
        notes.append("the head is the embedding (tied), and becomes a copy of it")
        have = {**have, "output_layer.linear.weight": have["vocab_embed.embedding"]}
    check_tensors(source.path, have, want)
    if sizes.waves != 256:
        raise UserError(f"{source.path} has {sizes.waves} sinusoids of the noise level: 256 are known")
    family = family_of(source, facts, choices, sizes, format_name, notes)
    if source.shadow is not None and not choices.raw:
        have = {**have, **averaged(source, have, list(want), notes)}
    options = {**options_of(family, facts, notes), **choices.options}
    _check_clock(source, family, facts, sizes)
    silenced = bool(source.top & {"train_start_file_idx"}) or facts.has("algo.adaLN")
    vocab = place(sizes.rows, sizes.rows, family, facts, choices, speaker, notes, uniform_mask=silenced)
    heads = heads_of(source, prefix, sizes, facts, choices, notes)
    uniform = options.get("uniform", 0.0) if family == "gidd" else None
    shape = Shape("dit", sizes.depth, heads, sizes.width, sizes.hidden, vocab.size, sizes.cond,
                  theta_of(source, prefix), uniform)  # fmt: skip
    bias = source.tensors.get(f"{prefix}logit_bias")
    targets = _targets(have, sizes, vocab, timeless(family, facts, sizes, notes), bias)
    length = choices.length or facts.number(
        "model_length", "max_seq_len", "model.length", "model.max_seq_len", "length"
    )
    if not length:
        notes.append("rows are taken to be of 1024 tokens (else give --length)")
    return Plan(format_name, family, options, shape, length or 1024, targets, vocab.mask, vocab.silent, notes)


def timeless(family: str, facts: Facts, sizes: Sizes, notes: list[str]) -> bool:
    """Whether a network of a family with a clock was never shown it: its time conditioning then always sees zero."""
    said = facts.flag("time_conditioning", "algo.time_conditioning")
    if family_class(family).clocked and sizes.cond and said is False:
        notes.append("the network was trained without its clock: the time conditioning is made constant")
        return True
    return False


def _check_clock(source: Source, family: str, facts: Facts, sizes: Sizes) -> None:
    said = facts.flag("time_conditioning", "algo.time_conditioning")
    kind = family_class(family)
    if said and sizes.cond and not kind.clocked and kind.spare != "bos":
        raise UserError(
            f"{source.path} was trained with time conditioning, and family {family!r} has no clock: "
            f"give --family d3pm for masked diffusion with one, or --family sedd"
        )


def _targets(
    have: dict[str, LazyTensor], sizes: Sizes, vocab: Vocabulary, constant: bool, logit_bias: LazyTensor | None
) -> dict[str, Target]:
    embedding = have["vocab_embed.embedding"]
    spare = all_of(spare_of(embedding)) if vocab.spare is None else Piece(embedding, vocab.spare, vocab.spare + 1)
    out = {"embedding": stacked(Piece(embedding, 0, vocab.size), spare, origin="vocab_embed.embedding")}
    if sizes.cond:
        out |= _conditioning(have, constant)
    renamed = {"attn_qkv.weight": "qkv.weight", "attn_out.weight": "out.weight", "mlp.0.": "mlp.up.", "mlp.2.": "mlp.down.",
               "adaLN_modulation": "modulation"}  # fmt: skip
    for name, tensor in have.items():
        if name.startswith("blocks."):
            out[_renamed(name, renamed)] = stacked(all_of(tensor), origin=name)
    out["norm.weight"] = stacked(
        all_of(have["output_layer.norm_final.weight"]), origin="output_layer.norm_final.weight"
    )
    for part in ("weight", "bias") if sizes.cond else ():
        name = f"output_layer.adaLN_modulation.{part}"
        out[f"modulation.{part}"] = stacked(all_of(have[name]), origin=name)
    return out | _head(have, vocab, logit_bias)


def _head(have: dict[str, LazyTensor], vocab: Vocabulary, logit_bias: LazyTensor | None) -> dict[str, Target]:
    """The rows of the text ids; an id that is never predicted keeps its row under a bias that no logit outweighs."""
    weight, bias = have["output_layer.linear.weight"], have["output_layer.linear.bias"].whole().float()
    if logit_bias is not None and math.prod(logit_bias.shape) == 1:
        bias = bias + logit_bias.whole().float().flatten()
    for silent in vocab.silent:
        bias[silent] = NEVER
    out = {"output.bias": stacked(all_of(bias[: vocab.size]), origin="output_layer.linear.bias")}
    rows = [Piece(weight, 0, vocab.size)]
    for silent in vocab.silent:
        rows = [Piece(weight, 0, silent), all_of(spare_of(weight)), Piece(weight, silent + 1, vocab.size)]
    out["output.weight"] = stacked(*rows, origin="output_layer.linear.weight")
    return out


def _conditioning(have: dict[str, LazyTensor], constant: bool) -> dict[str, Target]:
    """sigma_map. Constant: its first matrix is put into its bias as it is at sigma = 0, where the sinusoids are 1 and 0."""
    weight, bias = (have[f"sigma_map.mlp.0.{part}"] for part in ("weight", "bias"))
    first, offset = all_of(weight), all_of(bias)
    if constant:
        matrix = weight.whole().float()
        first = all_of(torch.zeros_like(matrix))
        offset = all_of(bias.whole().float() + matrix[:, :128].double().sum(1).float())
    out = {"time.first.weight": stacked(first, origin="sigma_map.mlp.0.weight")}
    out["time.first.bias"] = stacked(offset, origin="sigma_map.mlp.0.bias")
    for part in ("weight", "bias"):
        out[f"time.second.{part}"] = stacked(all_of(have[f"sigma_map.mlp.2.{part}"]), origin=f"sigma_map.mlp.2.{part}")
    return out


def _renamed(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name
