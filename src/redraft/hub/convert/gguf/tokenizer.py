"""The tokenizer in a GGUF file as a tokenizer.json: byte-level BPE ("gpt2") or sentencepiece BPE ("llama")."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.hub.export.sentencepiece_model import CONTROL, NORMAL, USER_DEFINED, Piece, SentencePieceModel
from redraft.hub.export.tokenizer_json import like_llama

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# How text is split before BPE, by the name that GGUF has for it.
SPLITS: dict[str, list[dict[str, Any]]] = {
    "default": [], "gpt-2": [], "smollm": [{"type": "Digits", "individual_digits": True}],
    "llama-bpe": [{"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}],
    "qwen2": [{"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}],
}  # fmt: skip
K = "tokenizer.ggml."


def tokenizer_of(path: Path, table: Mapping[str, Any]) -> dict[str, Any] | None:
    """None where the file has none. `UserError` for one that is not known, or is damaged."""
    if f"{K}model" not in table:
        return None
    tokens, types = table.get(f"{K}tokens"), table.get(f"{K}token_type")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{path} has a tokenizer without tokens: give --tokenizer")
    types = types if isinstance(types, list) and len(types) == len(tokens) else [NORMAL] * len(tokens)
    kind = table[f"{K}model"]
    if kind == "gpt2":
        return _byte_level(path, table, tokens, types)
    scores = table.get(f"{K}scores")
    if kind != "llama" or not isinstance(scores, list) or len(scores) != len(tokens):
        raise UserError(f"{path} has a tokenizer of an unknown or damaged kind, {str(kind)[:40]!r}: give --tokenizer")
    pieces = [Piece(*each) for each in zip(tokens, scores, types, strict=True)]
    return like_llama(SentencePieceModel(pieces, bool(table.get(f"{K}add_space_prefix", True)), plain=True))


def _byte_level(path: Path, table: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    split, merges = table.get(f"{K}pre", "default"), table.get(f"{K}merges", [])
    if split not in SPLITS:
        raise UserError(f"{path} splits text as {str(split)[:40]!r}, which is not known: give --tokenizer")
    if not isinstance(merges, list) or not all(isinstance(m, str) and len(m.split(" ")) == 2 for m in merges):
        raise UserError(f"{path} has a tokenizer without merges: give --tokenizer")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": i, "content": token, "special": kind == CONTROL, **flags}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    whole = not any(step["type"] == "Split" for step in SPLITS[split])
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if split == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*SPLITS[split], {**level, "use_regex": whole}]},
        "decoder": {**level, "use_regex": True},
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges},
    }
