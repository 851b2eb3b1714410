"""Models of llama2.c (version 0 `.bin` files and their `tok*.bin`), read into `transformers`.

Seven int32: width, inner width, depth, heads, key heads, +-vocabulary (negative: the head has its own table), context. Then
float32 tables, each for all layers at once. Rotary pairs are neighbours there and halves of a head here, so the rows of
queries and keys change places.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BEGIN, BYTES = 1, 3  # ids: of the beginning of a text; of byte 0


def read_network(path: Path) -> Any:
    """The network as a `LlamaForCausalLM`, float32. `ValueError` for a file that is none."""
    from transformers import LlamaConfig, LlamaForCausalLM

    data = path.read_bytes()
    d, inner, depth, heads, key_heads, vocab, context = struct.unpack("7i", data[:28])
    if min(d, inner, depth, heads, key_heads, abs(vocab), context) < 1 or d % heads:
        raise ValueError("not a llama2.c model of version 0")
    config = LlamaConfig(
        vocab_size=abs(vocab), hidden_size=d, intermediate_size=inner, num_hidden_layers=depth, num_attention_heads=heads,
        num_key_value_heads=key_heads, max_position_embeddings=context, rms_norm_eps=1e-5, tie_word_embeddings=vocab > 0,
    )  # fmt: skip
    tables = _tables(data, abs(vocab), d, inner, depth, heads, key_heads, context, vocab > 0)
    network = LlamaForCausalLM(config)
    network.load_state_dict(_named(tables, depth, heads, key_heads))
    return network.eval()


def _tables(
    data: bytes, vocab: int, d: int, inner: int, depth: int, heads: int, key_heads: int, context: int, tied: bool
) -> dict[str, Tensor]:
    """The file's tables by their names there."""
    keys = d // heads * key_heads
    shapes = {
        "embedding": (vocab, d), "norm1": (depth, d), "q": (depth, d, d), "k": (depth, keys, d), "v": (depth, keys, d),
        "out": (depth, d, d), "norm2": (depth, d), "w1": (depth, inner, d), "w2": (depth, d, inner), "w3": (depth, inner, d),
        "norm": (d,), "rotary": (2, context, d // heads // 2),
    }  # fmt: skip
    if not tied:
        shapes["head"] = (vocab, d)
    values, at, tables = np.frombuffer(data[28:], np.float32), 0, {}
    if len(values) != sum(int(np.prod(shape)) for shape in shapes.values()):
        raise ValueError("not a whole llama2.c model of version 0")
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        tables[name] = torch.from_numpy(values[at : at + size].reshape(shape).copy())
        at += size
    return tables


def _named(tables: dict[str, Tensor], depth: int, heads: int, key_heads: int) -> dict[str, Tensor]:
    """The same by the names of `transformers`."""
    named = {"model.embed_tokens.weight": tables["embedding"], "model.norm.weight": tables["norm"]}
    named["lm_head.weight"] = tables.get("head", tables["embedding"])
    parts = {
        "self_attn.v_proj": "v", "self_attn.o_proj": "out", "mlp.gate_proj": "w1", "mlp.down_proj": "w2",
        "mlp.up_proj": "w3", "input_layernorm": "norm1", "post_attention_layernorm": "norm2",
    }  # fmt: skip
    for i in range(depth):
        named |= {f"model.layers.{i}.{theirs}.weight": tables[ours][i] for theirs, ours in parts.items()}
        for part, count in (("q", heads), ("k", key_heads)):
            named[f"model.layers.{i}.self_attn.{part}_proj.weight"] = _halves(tables[part][i], count)
    return named


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows [h * 2 * D/2, d] whose rotary pairs are neighbours -> pairs in the two halves of each head."""
    rows, d = weight.shape
    return weight.view(heads, rows // heads // 2, 2, d).transpose(1, 2).reshape(rows, d)


def read_tokenizer(path: Path) -> Callable[[str], list[int]]:
    """Text to ids: characters (or bytes), the two neighbours whose joint piece scores best merged until none is left.

    A space is put before a text, as sentencepiece does.
    """
    pieces, scores = _pieces(path.read_bytes())
    known = {piece: i for i, piece in reversed(list(enumerate(pieces)))}

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for character in (" " + text) if text else "":
            raw = character.encode(errors="replace")
            ids += [known[raw]] if raw in known else [BYTES + byte for byte in raw]
        while True:
            joint = [(known.get(pieces[a] + pieces[b]), place) for place, (a, b) in enumerate(zip(ids, ids[1:]))]
            merges = [(scores[i], -place, i) for i, place in joint if i is not None]
            if not merges:
                return ids
            _, place, i = max(merges)
            ids[-place : 2 - place] = [i]

    return encode


def _pieces(data: bytes) -> tuple[list[bytes], list[float]]:
    pieces, scores, at = [], [], 4
    while at < len(data):
        score, length = struct.unpack("fi", data[at : at + 8])
        pieces.append(data[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    return pieces, scores
