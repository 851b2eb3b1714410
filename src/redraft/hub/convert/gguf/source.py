"""A GGUF file of a Llama or Qwen as the checkpoint that `transformers` would have: names, settings, tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from redraft.errors import UserError
from redraft.hub.convert.gguf.header import read_header
from redraft.hub.convert.gguf.scaling import DIVISORS, scaling_of
from redraft.hub.convert.gguf.tensors import lazy_tensors
from redraft.hub.convert.gguf.tokenizer import K, tokenizer_of
from redraft.hub.convert.source import Source
from redraft.hub.lazy_tensor import LazyTensor

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "dream": "dream"}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
SIZES = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count", "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length", "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
}  # fmt: skip


def open_gguf(path: Path) -> Source:
    """`UserError` for what is damaged, of another architecture, or holds what is not followed here."""
    header = read_header(path)
    table, name = header.table, header.table.get("general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{path} is of architecture {str(name)[:40]!r}, which is not known. Known: {known}")
    stored = lazy_tensors(path, header)
    divisors = stored.pop(DIVISORS, None) if name == "llama" else None
    config = _config(path, table, name, divisors)
    tensors = {_name(of): tensor for of, tensor in stored.items()}
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    if name == "llama":
        tensors = {of: _halves(path, of, tensor, config) for of, tensor in tensors.items()}
    return Source(path, tensors, config, tokenizer=tokenizer_of(path, table))


def _config(path: Path, table: Mapping[str, Any], name: str, divisors: LazyTensor | None) -> dict[str, Any]:
    of = lambda key: table.get(f"{name}.{key}")
    config = {"model_type": ARCHITECTURES[name], **{theirs: of(key) for theirs, key in SIZES.items()}}
    config["rms_norm_eps"] = _short(of("attention.layer_norm_rms_epsilon"))
    if of("rope.dimension_count") not in (None, config["head_dim"], _head(config)):
        raise UserError(
            f"{path} turns {of('rope.dimension_count')} dimensions of a head by RoPE, and only all are known here"
        )
    if of("attention.value_length") != of("attention.key_length"):
        raise UserError(f"{path} has heads of values of another width than those of keys, which is not known here")
    if of("expert_count"):
        raise UserError(f"{path} is a mixture of {of('expert_count')} experts, which is not known here")
    theta = _short(of("rope.freq_base"))
    scaling = scaling_of(path, lambda key: _short(of(key)), divisors, config["head_dim"] or _head(config), theta)
    config["rope_parameters"] = {"rope_theta": theta, **scaling}
    ids = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "mask_token_id": "mask_token_id"}
    config |= {theirs: table.get(K + key) for theirs, key in ids.items()}
    adds = table.get(f"{K}add_bos_token")
    config["add_bos_token"] = table.get(f"{K}model") == "llama" if adds is None else adds
    return config


def _head(config: Mapping[str, Any]) -> int | None:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    return width // heads if type(width) is int and type(heads) is int and heads > 0 else None


def _short(value: Any) -> Any:
    """A float32 as the number that was meant: 1e-5 and not 9.99999974738e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _name(of: str) -> str:
    """GGUF's name -> that of `transformers`; one that is not known stays, and is named later."""
    stem, _, kind = of.rpartition(".")
    if match := re.fullmatch(r"blk\.(\d{1,5})\.(\w+)", stem):
        return f"model.layers.{match[1]}.{INNER.get(match[2], match[2])}.{kind}"
    return f"{OUTER.get(stem, stem)}.{kind}"


def _halves(path: Path, of: str, tensor: LazyTensor, config: Mapping[str, Any]) -> LazyTensor:
    """Llama's queries and keys are stored with the pairs of RoPE as neighbours."""
    if not re.search(r"\.[qk]_proj\.weight$", of):
        return tensor
    head = config["head_dim"] or _head(config)
    if type(head) is not int or head < 2 or head % 2 or tensor.shape[0] % head:
        raise UserError(f"{path} has {tensor.shape[0]} rows in {of}, which heads of width {head} do not fit")
    return replace(tensor, head=head)
