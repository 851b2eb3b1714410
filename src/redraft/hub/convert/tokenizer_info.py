"""The tokenizer of a converted model: found, its [MASK] id read, and padded to the model's vocabulary.

A model may have more ids than its tokenizer: a [PAD] that was added, rows up to a multiple of 64. A tokenizer then gets as
many tokens that no text becomes, so that ids, embeddings and logits stay the same numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.files import read_json, write_text
from redraft.hub.convert.layouts.vocabulary import TokenizerInfo
from redraft.text.tokenizers.tokenizer import END_OF_DOCUMENT, Bytes, Tokenizer, load_tokenizer

MASK_TOKENS = ("[MASK]", "<mask>", "<|mask|>", "<|mdm_mask|>", "<MASK>", "[mask]")
FILES = ("tokenizer.json", "tokenizer.model", "bytes.json", "vocab.bpe")
UNUSED = 5  # sentencepiece's type of a piece that is never produced


def find_tokenizer(folder: Path, given: str | None, named: str | None, download: bool) -> Tokenizer:
    """The tokenizer that was asked for, or the one beside the weights. A name is looked up on this machine, or downloaded
    if that is asked."""
    if given is None:
        if any((folder / name).is_file() for name in FILES):
            return load_tokenizer(folder)
        hint = f" (the checkpoint names {named!r})" if named else ""
        raise UserError(f"{folder} holds no tokenizer.json: give --tokenizer PATH{hint}, or bytes")
    if given == "bytes" or Path(given).expanduser().exists():
        return load_tokenizer(given)
    return load_tokenizer(_from_hub(given, download))


def _from_hub(name: str, download: bool) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(f"no tokenizer {name!r} here: give a path") from None
    for file in ("tokenizer.json", "tokenizer.model"):
        try:
            return Path(hf_hub_download(name, file, local_files_only=not download))
        except (OSError, ValueError):  # not there, no network, no such name
            continue
    further = "" if download else ", or --download to fetch it"
    raise UserError(f"no tokenizer {name!r} on this machine: give a path{further}")


def tokenizer_info(tokenizer: Tokenizer, folder: Path) -> TokenizerInfo:
    """`folder` holds the tokenizer as it was saved."""
    return TokenizerInfo(tokenizer.size, tokenizer.eos, _mask(folder), tokenizer.name)


def _mask(folder: Path) -> int | None:
    if not (folder / "tokenizer.json").is_file():
        return None
    definition = read_json(folder / "tokenizer.json")
    added = {token["content"]: token["id"] for token in definition.get("added_tokens", [])}
    return next((added[name] for name in MASK_TOKENS if name in added), None)


def fill_up(tokenizer: Tokenizer, folder: Path, size: int) -> Tokenizer:
    """The tokenizer saved in `folder` with tokens that no text becomes, up to `size` ids; written in its place."""
    if tokenizer.size == size:
        return tokenizer
    if isinstance(tokenizer, Bytes):
        (folder / "bytes.json").unlink()
        write_text(folder / "tokenizer.json", json.dumps(_bytes_definition(size)))
    elif (folder / "tokenizer.json").is_file():
        definition = read_json(folder / "tokenizer.json")
        write_text(folder / "tokenizer.json", json.dumps(_more_tokens(definition, tokenizer, size), ensure_ascii=False))
    else:
        model = folder / "tokenizer.model"
        model.write_bytes(model.read_bytes() + b"".join(_piece(i) for i in range(_pieces(tokenizer), size)))
    filled = load_tokenizer(folder)
    sample = "It was the best of times, 1859.\nübrigens"
    if filled.size != size or filled.encode(sample).tolist() != tokenizer.encode(sample).tolist():
        raise UserError(
            f"the tokenizer {tokenizer.name} has {tokenizer.size} ids, the model {size}, and it cannot be filled up: "
            f"give one with {size} ids"
        )
    return filled


def _pieces(tokenizer: Tokenizer) -> int:
    """Pieces in the file: an end of a document that was appended is none."""
    engine: Any = tokenizer._engine  # type: ignore[attr-defined]
    return int(engine.vocab_size())


def _more_tokens(definition: dict[str, Any], tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = list(definition.get("added_tokens", []))
    ends = any(token["content"] in END_OF_DOCUMENT for token in added if token.get("special"))
    first = tokenizer.size if ends else tokenizer.eos
    for i in range(first, size):
        content = END_OF_DOCUMENT[1] if not ends and i == first else f"<|unused_{i}|>"
        added.append({"id": i, "content": content, **flags})
    return {**definition, "added_tokens": added}


def _bytes_definition(size: int) -> dict[str, Any]:
    """Bytes as a tokenizer.json: the same ids, through the fallback of a model that knows no characters."""
    vocabulary = {f"<0x{i:02X}>": i for i in range(256)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = {256: END_OF_DOCUMENT[0], **{i: f"<|unused_{i}|>" for i in range(257, size)}}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": name, **flags} for i, name in names.items()],
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "byte_fallback": True},
    }


def _piece(i: int) -> bytes:
    """One more piece of a sentencepiece model: repeated fields of its format may simply follow one another."""
    name = f"<|unused_{i}|>".encode()
    body = b"\x0a" + bytes([len(name)]) + name + b"\x15" + b"\0\0\0\0" + b"\x18" + bytes([UNUSED])
    return b"\x0a" + bytes([len(body)]) + body
