"""Layouts that others read without our code: those of `transformers` itself, and LLaDA's and Dream's, whose code is theirs.

  llama, qwen2, qwen3, gpt2   family ar: by block, biases and norms of queries and keys
  llada                       mdlm on the plain llama block
  dream                       mdlm with `family.shift`; biases that it lacks are written as zeros

A model that was converted from one of these comes out with the same tensors. One of ours has an id more than its tokenizer,
BOS or [MASK], and the head a row for it: the mean of the others, so that its logit is the mean logit, its probability at most
1 / (V + 1), and log p of text off by at most log(1 + 1 / V). The logits of the V text ids are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redraft.families.ar import AR, SPARE
from redraft.families.mdlm import MDLM
from redraft.hub.convert.layouts import gpt2
from redraft.hub.model import Model
from redraft.network.sizes import Scaling, Shape

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "gpt2": "GPT2LMHeadModel",
           "llada": "LLaDAModelLM", "dream": "DreamModel"}  # fmt: skip
# LLaDA's name of a block's part, by Llama's.
LLADA = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ff_norm", "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj", "self_attn.v_proj": "v_proj", "self_attn.o_proj": "attn_out", "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out",
}  # fmt: skip


@dataclass(frozen=True)
class Stock:
    """`layout` by name; `spare`: whether the spare id is written; `special`: the id that is BOS or [MASK] there."""

    layout: str
    spare: bool
    special: int | None


def stock_of(model: Model) -> Stock | str:
    """The layout of a model, or why there is none, in a few words."""
    shape, family = model.network.shape, model.family
    if isinstance(family, AR):
        layout = _causal_layout(shape)
        return layout if " " in layout else Stock(layout, family.bos == SPARE, family.bos_id)
    if not isinstance(family, MDLM) or shape.block != "llama":
        return f"there is no layout of others for family {family.name!r} on block {shape.block!r}"
    layout = "dream" if family.shift else "llada"
    more = [name for name in shape.grown if name in ("qk_norm", "head_dim", "scaling", "qkv_bias")]
    if more and (layout == "llada" or more != ["qkv_bias"]):
        return f"{layout} has no network.{more[0]}"
    mask = (model.record.get("converted") or {}).get("mask")
    own = isinstance(mask, int) and mask < shape.vocab
    own = own and torch.equal(model.network.embedding[mask], model.network.embedding[shape.vocab])
    return Stock(layout, not own, mask if own else shape.vocab)


def _causal_layout(shape: Shape) -> str:
    if shape.block == "gpt2":
        return "gpt2"
    if shape.block != "llama":
        return f"its blocks are {shape.block!r}, not 'llama' or 'gpt2'"
    if shape.qk_norm and shape.qkv_bias:
        return "no layout has both network.qk_norm and network.qkv_bias"
    return "qwen3" if shape.qk_norm else "qwen2" if shape.qkv_bias else "llama"


def stock_tensors(model: Model, stock: Stock) -> dict[str, Tensor]:
    """Under the layout's own names."""
    if stock.layout == "gpt2":
        return _gpt2_tensors(model, stock)
    tensors = llama_tensors(model, stock)
    return {_llada_name(name): tensor for name, tensor in tensors.items()} if stock.layout == "llada" else tensors


def llama_tensors(model: Model, stock: Stock) -> dict[str, Tensor]:
    """Under Llama's names. RoPE pairs the halves of a head in both, so nothing is turned."""
    tensors, shape = model.network.state_dict(), model.network.shape
    out = _outer(tensors, shape, stock, "model.embed_tokens.weight") | {"model.norm.weight": tensors["norm.weight"]}
    for layer in range(shape.depth):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        for kind in ("weight", "bias"):
            out |= {f"{theirs}self_attn.{p}_proj.{kind}": t for p, t in _qkv(tensors, shape, ours, kind, stock).items()}
        out[f"{theirs}self_attn.o_proj.weight"] = tensors[f"{ours}out.weight"]
        out |= {f"{theirs}mlp.{p}_proj.weight": tensors[f"{ours}mlp.{p}.weight"] for p in ("gate", "up", "down")}
        out |= {f"{theirs}self_attn.{p}_norm.weight": tensors[f"{ours}norm_{p}.weight"] for p in "qk" if shape.qk_norm}
        out[f"{theirs}input_layernorm.weight"] = tensors[f"{ours}norm1.weight"]
        out[f"{theirs}post_attention_layernorm.weight"] = tensors[f"{ours}norm2.weight"]
    return out


def _qkv(tensors: dict[str, Tensor], shape: Shape, ours: str, kind: str, stock: Stock) -> dict[str, Tensor]:
    sizes = [shape.heads * shape.head, shape.keys * shape.head, shape.keys * shape.head]
    whole = tensors.get(f"{ours}qkv.{kind}")
    if whole is None:
        whole = torch.zeros(sum(sizes)) if stock.layout == "dream" else torch.zeros(0)
    return dict(zip("qkv", whole.split(sizes), strict=True)) if len(whole) else {}


def _outer(tensors: dict[str, Tensor], shape: Shape, stock: Stock, name: str) -> dict[str, Tensor]:
    """Embedding and head."""
    embedding, rows = tensors["embedding"], shape.vocab + stock.spare
    if shape.tied and not stock.spare:
        return {name: embedding[:rows]}
    head = embedding[: shape.vocab] if shape.tied else tensors["output.weight"]
    head = torch.cat([head, head.mean(0, keepdim=True)]) if stock.spare else head
    return {name: embedding[:rows], "lm_head.weight": head}


def _gpt2_tensors(model: Model, stock: Stock) -> dict[str, Tensor]:
    tensors, shape = model.network.state_dict(), model.network.shape
    out = _outer(tensors, shape, stock, "transformer.wte.weight") | {"transformer.wpe.weight": tensors["positions"]}
    pairs = [
        (f"blocks.{i}.{ours}", f"h.{i}.{theirs}") for i in range(shape.depth) for ours, theirs in gpt2.PARTS.items()
    ]
    for ours, theirs in [*pairs, ("norm", "ln_f")]:
        weight = tensors[f"{ours}.weight"]
        out[f"transformer.{theirs}.weight"] = weight.T if weight.ndim > 1 else weight
        out[f"transformer.{theirs}.bias"] = tensors[f"{ours}.bias"]
    return out


def _llada_name(name: str) -> str:
    outer = {"model.embed_tokens.weight": "wte", "model.norm.weight": "ln_f", "lm_head.weight": "ff_out"}
    if name in outer:
        return f"model.transformer.{outer[name]}.weight"
    _, _, layer, part = name.split(".", 3)
    stem, _, kind = part.rpartition(".")
    return f"model.transformer.blocks.{layer}.{LLADA[stem]}.{kind}"


def stock_config(model: Model, stock: Stock) -> dict[str, Any]:
    """config.json."""
    shape, eos = model.network.shape, model.tokenizer.eos
    named = "Dream" if stock.layout == "dream" else stock.layout
    special = "bos_token_id" if isinstance(model.family, AR) else "mask_token_id"
    tied = shape.tied and not stock.spare
    length = shape.context or model.length + (isinstance(model.family, AR) and stock.special is not None)
    common = {
        "model_type": named, "architectures": [CLASSES[stock.layout]], "vocab_size": shape.vocab + stock.spare,
        "eos_token_id": eos, "pad_token_id": eos, special: stock.special, "dtype": "float32", "use_cache": True,
    }  # fmt: skip
    if stock.layout == "gpt2":
        return common | {
            "n_embd": shape.width, "n_layer": shape.depth, "n_head": shape.heads, "n_inner": shape.hidden,
            "n_positions": length, "layer_norm_epsilon": shape.eps, "activation_function": "gelu_new",
            "tie_word_embeddings": tied, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
        }  # fmt: skip
    if stock.layout == "llada":
        return common | _llada_config(shape, tied, length) | {"embedding_size": common["vocab_size"]}
    return common | {
        "hidden_size": shape.width, "num_hidden_layers": shape.depth, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.keys, "head_dim": shape.head, "intermediate_size": shape.hidden, "hidden_act": "silu",
        "max_position_embeddings": length, "rms_norm_eps": shape.eps, "tie_word_embeddings": tied, "rope_theta": shape.theta,
        "rope_parameters": {"rope_theta": shape.theta, **_rope(shape.scaling)}, "attention_bias": False, "mlp_bias": False,
        "use_sliding_window": False,
    }  # fmt: skip


def _rope(scaling: Scaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default"}
    table: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        table["original_max_position_embeddings"] = scaling.original
    if scaling.kind == "llama3":
        table |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    if scaling.kind == "yarn":
        table |= {"beta_fast": scaling.fast, "beta_slow": scaling.slow}
        table |= {"attention_factor": scaling.attention} if scaling.attention else {}
    return table


def _llada_config(shape: Shape, tied: bool, length: int) -> dict[str, Any]:
    return {
        "d_model": shape.width, "n_layers": shape.depth, "n_heads": shape.heads, "n_kv_heads": shape.keys,
        "mlp_hidden_size": shape.hidden, "max_sequence_length": length,
        "rms_norm_eps": shape.eps, "rope_theta": shape.theta, "weight_tying": tied, "rope": True, "alibi": False,
        "block_type": "llama", "block_group_size": 1, "activation_type": "silu", "layer_norm_type": "rms",
        "layer_norm_with_affine": True, "bias_for_layer_norm": False, "include_bias": False, "include_qkv_bias": False,
        "attention_layer_norm": False, "multi_query_attention": False, "input_emb_norm": False, "scale_logits": False,
        "flash_attention": False, "rope_full_precision": True, "embedding_dropout": 0.0, "residual_dropout": 0.0,
        "attention_dropout": 0.0, "init_device": "cpu",
    }  # fmt: skip
