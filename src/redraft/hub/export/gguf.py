"""GGUF export for llama.cpp (architectures llama, qwen2, qwen3, llada, dream): float32 tensors, and the tokenizer in one kind:

    gpt2    byte-level BPE as GPT-2 splits text (`tokenizer.json`)
    llama   sentencepiece BPE with byte pieces; our byte tokenizer is that, with no other piece than the space

Llama and LLaDA pair neighbours in RoPE there where we pair halves, so the rows of queries and keys change places.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from redraft.errors import UserError, require
from redraft.families.ar import AR
from redraft.files import write_whole
from redraft.hub.convert.gguf.scaling import DIVISORS
from redraft.hub.convert.gguf.tokenizer import SPLITS
from redraft.hub.export.sentencepiece_model import BYTE, CONTROL, NORMAL, UNUSED
from redraft.hub.export.stock import Stock, llama_tensors
from redraft.hub.export.tokenizer_json import BEGIN, END, exported, own_tokenizer_files, sentencepiece
from redraft.hub.model import Model
from redraft.network.rope import divisors
from redraft.network.sizes import Scaling
from redraft.text.tokenizers.tokenizer import Bytes, SentencePiece, Tokenizer

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
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
    split: str = "gpt-2"

    def without_last(self) -> Vocabulary:
        return replace(self, tokens=self.tokens[:-1], types=self.types[:-1], scores=self.scores[:-1])


def write_gguf(path: Path, model: Model, stock: Stock) -> None:
    """`UserError` where the tokenizer, or the scaling of rotary angles, cannot be said in GGUF."""
    require("a GGUF file", "gguf", "gguf")
    import gguf

    vocabulary, shape = vocabulary_of(model.tokenizer, stock.spare), model.network.shape
    if why := _unsaid(shape.scaling, stock.layout):
        raise UserError(f"a GGUF file cannot say the scaling of the rotary angles: {why}. Try: --to hf")

    def write(aside: Path) -> None:
        writer = gguf.GGUFWriter(aside, stock.layout)
        _describe(writer, model, stock, gguf)
        _add_tokenizer(writer, vocabulary, model, stock)
        if shape.scaling is not None and shape.scaling.kind == "llama3":
            table = divisors(shape.head, shape.theta, shape.scaling)
            writer.add_tensor(DIVISORS, table.float().numpy())
        for name, data in llama_tensors(model, stock).items():
            if stock.layout in ("llama", "llada") and ("q_proj" in name or "k_proj" in name):
                data = _neighbours(data, shape.heads if "q_proj" in name else shape.keys)
            writer.add_tensor(tensor_name(name), data.detach().float().cpu().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_whole(path, write)


def _unsaid(scaling: Scaling | None, layout: str) -> str:
    """What of it has no words in GGUF."""
    if scaling is None or scaling.kind == "linear":
        return ""
    if scaling.kind == "yarn":
        return "of yarn, network.scaling.attention has no key that all readers take alike" if scaling.attention else ""
    return "" if layout == "llama" else f"llama3 is a table of the architecture llama, and this is {layout}"


def tensor_name(name: str) -> str:
    """Llama's name -> GGUF's."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def vocabulary_of(tokenizer: Tokenizer, spare: bool = True) -> Vocabulary:
    """The V ids of text, and the spare one where it is written."""
    if not isinstance(tokenizer, Bytes | SentencePiece):
        return _byte_level(tokenizer, spare)
    return _with_spare(tokenizer) if spare else _with_spare(tokenizer).without_last()


def _with_spare(tokenizer: Bytes | SentencePiece) -> Vocabulary:
    if isinstance(tokenizer, Bytes):
        # The space is a piece, as sentencepiece renames it; every other byte is found by falling back to bytes.
        tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        tokens[ord(" ")] = "▁"
        types = [BYTE] * 256
        types[ord(" ")] = NORMAL
        return Vocabulary("llama", [*tokens, END, BEGIN], [*types, CONTROL, CONTROL], [0.0] * 258)
    return _sentencepiece(tokenizer)


def _sentencepiece(tokenizer: Tokenizer) -> Vocabulary:
    spec = sentencepiece(tokenizer)
    if not spec.plain:
        raise UserError(
            "this sentencepiece model cannot be said in GGUF: it is no BPE, or changes text first. Try: --to hf"
        )
    more = [END] * (tokenizer.size - len(spec.pieces)) + [BEGIN]
    tokens, types = [p.text for p in spec.pieces] + more, [p.type for p in spec.pieces] + [CONTROL] * len(more)
    scores = [p.score for p in spec.pieces] + [0.0] * len(more)
    return Vocabulary("llama", tokens, types, scores, prefix=spec.prefix)


def _byte_level(tokenizer: Tokenizer, spare: bool) -> Vocabulary:
    files = exported(tokenizer, causal=True, length=0) if spare else own_tokenizer_files(tokenizer, None, False, 0)
    table = files["tokenizer.json"]
    split, kind = table.get("pre_tokenizer") or {}, table["model"].get("type")
    known = _split_name(split)
    if kind != "BPE" or known is None or (table.get("normalizer") and known != "qwen2") or not table["model"]["merges"]:
        raise UserError(
            "this tokenizer.json cannot be said in GGUF: it does not split text as GPT-2, SmolLM, Llama 3 or Qwen2 do. "
            "Try: --to hf"
        )
    names = {number: text for text, number in table["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in table["added_tokens"]}
    special = {token["id"] for token in table["added_tokens"]}
    ids = range(tokenizer.size + spare)
    types = [CONTROL if i in special else NORMAL if i in names else UNUSED for i in ids]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in table["model"]["merges"]]
    return Vocabulary("gpt2", [names.get(i, f"[PAD{i}]") for i in ids], types, merges=merges, split=known)


def _split_name(split: dict[str, Any]) -> str | None:
    """GGUF's name for how text is split before BPE; None where it has none that we know."""
    steps = split.get("pretokenizers", []) if split.get("type") == "Sequence" else [split]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    whole = steps[-1].get("use_regex", True)
    found = {"gpt-2": [], **SPLITS}
    fits = (
        name for name, own in found.items() if own == steps[:-1] and whole == all(s["type"] != "Split" for s in own)
    )
    return next(fits, None)


def _describe(writer: Any, model: Model, stock: Stock, gguf: Any) -> None:
    shape = model.network.shape
    writer.add_name(f"redraft {model.family.name}")
    writer.add_context_length(model.length + 1)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.depth)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.keys)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_dimension_count(shape.head)
    if shape.head_dim:
        writer.add_key_length(shape.head)
        writer.add_value_length(shape.head)
    if shape.scaling is not None and shape.scaling.kind != "llama3":
        writer.add_rope_scaling_type(gguf.RopeScalingType(shape.scaling.kind))
        writer.add_rope_scaling_factor(shape.scaling.factor)
    if shape.scaling is not None and shape.scaling.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(shape.scaling.original)
        writer.add_rope_scaling_yarn_beta_fast(shape.scaling.fast)
        writer.add_rope_scaling_yarn_beta_slow(shape.scaling.slow)
    if stock.layout in ("llada", "dream"):
        writer.add_causal_attention(False)
        writer.add_diffusion_shift_logits(stock.layout == "dream")
        writer.add_mask_token_id(stock.special)
    writer.add_rope_freq_base(shape.theta)
    writer.add_vocab_size(shape.vocab + stock.spare)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _add_tokenizer(writer: Any, vocabulary: Vocabulary, model: Model, stock: Stock) -> None:
    begins = isinstance(model.family, AR) and stock.special is not None
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.kind == "gpt2":
        writer.add_tokenizer_pre(vocabulary.split)
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.prefix)
    if begins:
        writer.add_bos_token_id(stock.special)
    writer.add_eos_token_id(model.tokenizer.eos)
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(False)


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head's two halves, interleaved."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
