"""A tokenizer as `tokenizer.json` for exported folders: our ids, and the spare id V as a special token.

Sentencepiece models come along where they are BPE on text as it is, as Llama 2's. What a tokenizer adds around a text is what
the model was trained with: nothing, or BOS for a left-to-right model. Characters that spell a special token are read as that
token, as is usual there; redraft reads them as text.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redraft.errors import UserError
from redraft.hub.export.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, SentencePieceModel, read_model
from redraft.text.tokenizers.tokenizer import Bytes, SentencePiece, Tokenizer

END, BEGIN, MASK = "<|endoftext|>", "<|begin|>", "<|mask|>"
SPACE = "▁"


def byte_level() -> dict[str, Any]:
    """The tokenizer of bytes: ids 0..255 are bytes, under GPT-2's printable names for them, and 256 ends a document."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {"type": "BPE", "vocab": {name: byte for byte, name in enumerate(byte_names())}, "merges": []}
    return {"version": "1.0", "added_tokens": [], "pre_tokenizer": level, "decoder": level, "model": model}


def byte_names() -> list[str]:
    """GPT-2's character for each byte: itself where it is printable, else the next from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def definition(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """A `tokenizer.json` with our ids; None for a sentencepiece model that has none."""
    if isinstance(tokenizer, Bytes):
        return byte_level()
    if isinstance(tokenizer, SentencePiece):
        spec = sentencepiece(tokenizer)
        return like_llama(spec) if spec.plain else None
    return dict(json.loads(_saved(tokenizer, "tokenizer.json")))


def sentencepiece(tokenizer: Tokenizer) -> SentencePieceModel:
    return read_model(_saved(tokenizer, "tokenizer.model"))


def _saved(tokenizer: Tokenizer, name: str) -> bytes:
    with TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return (Path(folder) / name).read_bytes()


def like_llama(spec: SentencePieceModel) -> dict[str, Any]:
    """Sentencepiece's BPE as Llama 2 uses it: the pair that makes the piece of highest score is merged first."""
    vocabulary = {piece.text: number for number, piece in enumerate(spec.pieces)}
    by_score = sorted((p for p in spec.pieces if p.type == NORMAL), key=lambda piece: -piece.score)
    merges = [pair for piece in by_score for pair in _halves(piece.text, vocabulary)]
    unknown = next((p.text for p in spec.pieces if p.type == UNKNOWN), None)
    has_bytes = any(piece.type == BYTE for piece in spec.pieces)
    rename = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    steps = [{"type": "Prepend", "prepend": SPACE}] * spec.prefix + [rename]
    ends = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * spec.prefix
    special = [(n, p.text) for n, p in enumerate(spec.pieces) if p.type in (UNKNOWN, CONTROL)]
    return {
        "version": "1.0",
        "added_tokens": [_special(number, text) for number, text in special],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *ends]},
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": merges,
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": has_bytes,
        },
    }


def _halves(text: str, vocabulary: dict[str, int]) -> list[list[str]]:
    """The pairs of pieces that make a piece, those of low ids first."""
    cuts = [[text[:cut], text[cut:]] for cut in range(1, len(text))]
    return sorted(
        (pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary),
        key=lambda pair: [vocabulary[part] for part in pair],
    )


def exported(tokenizer: Tokenizer, causal: bool, length: int) -> dict[str, dict[str, Any]]:
    """The tokenizer's files by name, for a model whose spare id is BOS (`causal`) or [MASK]; none where it has no JSON."""
    table = definition(tokenizer)
    if table is None:
        return {}
    end = _name_of(table, tokenizer.eos) or _new_token(table, END, tokenizer.eos)
    spare = _new_token(table, BEGIN if causal else MASK, tokenizer.size)
    table |= {
        "post_processor": _begin_with(spare, tokenizer.size) if causal else None,
        "truncation": None,
        "padding": None,
    }
    _check_ids(table, {end: tokenizer.eos, spare: tokenizer.size})
    return {"tokenizer.json": table, "tokenizer_config.json": _config(end, spare, causal, length)}


def own_tokenizer_files(
    tokenizer: Tokenizer, special: int | None, causal: bool, length: int
) -> dict[str, dict[str, Any]]:
    """The tokenizer's files for a model whose BOS (`causal`) or [MASK] is one of its own ids, or none; as `exported`."""
    table = definition(tokenizer)
    if table is None:
        return {}
    end = _name_of(table, tokenizer.eos) or _new_token(table, END, tokenizer.eos)
    name = None if special is None else _name_of(table, special)
    begins = name if causal else None
    process = _begin_with(begins, special) if begins is not None and special is not None else None
    table |= {"post_processor": process, "truncation": None, "padding": None}
    config = _config(end, name or end, causal, length) | {"add_bos_token": causal and special is not None}
    if name is None:
        del config["bos_token" if causal else "mask_token"]
    return {"tokenizer.json": table, "tokenizer_config.json": config}


def _config(end: str, spare: str, causal: bool, length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token" if causal else "mask_token": spare,
        "eos_token": end,
        "pad_token": end,
        "padding_side": "left" if causal else "right",
        "model_max_length": length + causal,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }


def _name_of(table: dict[str, Any], number: int) -> str | None:
    """The special token of that id."""
    return next((t["content"] for t in table["added_tokens"] if t["id"] == number), None)


def _new_token(table: dict[str, Any], content: str, number: int) -> str:
    """A special token of that id. It goes into the model's vocabulary too: the library numbers other tokens itself."""
    vocabulary = table["model"]["vocab"]
    known = {piece[0] for piece in vocabulary} if isinstance(vocabulary, list) else vocabulary
    while content in known or any(token["content"] == content for token in table["added_tokens"]):
        content = f"{content}_"
    if isinstance(vocabulary, list):
        vocabulary.append([content, -1e9])
    else:
        vocabulary[content] = number
    table["added_tokens"].append(_special(number, content))
    return content


def _special(number: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags}


def _begin_with(token: str, number: int) -> dict[str, Any]:
    piece = lambda name: {"Sequence": {"id": name, "type_id": 0}}
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, piece("A")],
        "pair": [first, piece("A"), piece("B")],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _check_ids(table: dict[str, Any], wanted: dict[str, int]) -> None:
    from tokenizers import Tokenizer as Engine

    engine = Engine.from_str(json.dumps(table))
    for token, number in wanted.items():
        if engine.token_to_id(token) != number:
            raise UserError(
                f"the tokenizer cannot be exported: its {token!r} would be id {engine.token_to_id(token)}, not {number}. "
                f"Try: --to native"
            )
