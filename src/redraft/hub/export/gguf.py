"""GGUF export of a Llama for llama.cpp: float32 tensors, and the tokenizer in one of GGUF's kinds.

    gpt2    byte-level BPE as GPT-2 splits text (`tokenizer.json`)
    llama   sentencepiece BPE with byte pieces; our byte tokenizer is that, with no other piece than the space

GGUF pairs neighbours in RoPE where we pair halves, so the rows of queries and keys change places.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from redraft.errors import UserError
from redraft.files import write_whole
from redraft.hub.export.sentencepiece_model import BYTE, CONTROL, NORMAL, UNUSED
from redraft.hub.export.tokenizer_json import BEGIN, END, exported, sentencepiece
from redraft.hub.model import Model
from redraft.text.tokenizers.tokenizer import Bytes, SentencePiece, Tokenizer

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@dataclass(frozen=True)
class Vocabulary:
    """`kind`: gpt2 or llama. One entry of `tokens` and `types` for each of V + 1 ids; `scores` for kind llama."""

    kind: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    prefix: bool = False


def write_gguf(path: Path, model: Model, tensors: dict[str, Tensor]) -> None:
    """`tensors` under Llama's names. `UserError` where the tokenizer cannot be said in GGUF."""
    try:
        import gguf
    except ImportError:
        raise UserError("a GGUF file needs the package 'gguf': pip install 'redraft[gguf]'") from None
    vocabulary = vocabulary_of(model.tokenizer)

    def write(aside: Path) -> None:
        writer = gguf.GGUFWriter(aside, "llama")
        _describe(writer, model, gguf)
        _add_tokenizer(writer, vocabulary, model)
        for name, tensor in tensors.items():
            data = _neighbours(tensor, model.network.shape.heads) if "q_proj" in name or "k_proj" in name else tensor
            writer.add_tensor(tensor_name(name), data.detach().float().cpu().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_whole(path, write)


def tensor_name(name: str) -> str:
    """Llama's name -> GGUF's."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """The V ids of text, and BOS."""
    if isinstance(tokenizer, Bytes):
        # The space is a piece, as sentencepiece renames it; every other byte is found by falling back to bytes.
        tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        tokens[ord(" ")] = "▁"
        types = [BYTE] * 256
        types[ord(" ")] = NORMAL
        return Vocabulary("llama", [*tokens, END, BEGIN], [*types, CONTROL, CONTROL], [0.0] * 258)
    if isinstance(tokenizer, SentencePiece):
        return _sentencepiece(tokenizer)
    return _byte_level(tokenizer)


def _sentencepiece(tokenizer: Tokenizer) -> Vocabulary:
    spec = sentencepiece(tokenizer)
    if not spec.plain:
        raise UserError(
            "this sentencepiece model cannot be said in GGUF: it is no BPE, or changes text first. Try: --to llama"
        )
    more = [END] * (tokenizer.size - len(spec.pieces)) + [BEGIN]
    tokens, types = [p.text for p in spec.pieces] + more, [p.type for p in spec.pieces] + [CONTROL] * len(more)
    scores = [p.score for p in spec.pieces] + [0.0] * len(more)
    return Vocabulary("llama", tokens, types, scores, prefix=spec.prefix)


def _byte_level(tokenizer: Tokenizer) -> Vocabulary:
    table = exported(tokenizer, causal=True, length=0)["tokenizer.json"]
    split, kind = table.get("pre_tokenizer") or {}, table["model"].get("type")
    as_gpt2 = split.get("type") == "ByteLevel" and split.get("use_regex", True) and not split.get("add_prefix_space")
    if kind != "BPE" or not as_gpt2 or table.get("normalizer") or not table["model"]["merges"]:
        raise UserError(
            "this tokenizer.json cannot be said in GGUF: it does not split text as GPT-2 does. Try: --to llama"
        )
    names = {number: text for text, number in table["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in table["added_tokens"]}
    special = {token["id"] for token in table["added_tokens"]}
    ids = range(tokenizer.size + 1)
    types = [CONTROL if i in special else NORMAL if i in names else UNUSED for i in ids]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in table["model"]["merges"]]
    return Vocabulary("gpt2", [names.get(i, f"[PAD{i}]") for i in ids], types, merges=merges)


def _describe(writer: Any, model: Model, gguf: Any) -> None:
    shape = model.network.shape
    writer.add_name(f"redraft {model.family.name}")
    writer.add_context_length(model.length + 1)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.depth)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(shape.theta)
    writer.add_vocab_size(shape.vocab + 1)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _add_tokenizer(writer: Any, vocabulary: Vocabulary, model: Model) -> None:
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.kind == "gpt2":
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.prefix)
    writer.add_bos_token_id(model.family.vocab)
    writer.add_eos_token_id(model.tokenizer.eos)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head's two halves, interleaved."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
