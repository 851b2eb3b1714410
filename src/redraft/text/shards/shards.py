"""Token shards on disk, and the manifest that describes them.

A folder holds, for each split, `train_00000.bin` (raw little-endian uint16, or uint32 where ids need it),
`train_00000.idx.npy` (uint64, where each document starts in its shard) and `train_00000.json` (counts and hash),
and at last `manifest.json`. Documents fill shards in their order, a shard ends with the document that fills it, so
what a shard holds depends on nothing else: a shard that is whole is kept when an interrupted run is continued.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redraft.errors import UserError
from redraft.files import whole_file, write_text
from redraft.text.shards.packed import MAGIC, packed_tokens
from redraft.text.shards.tokens import Shard, Tokens
from redraft.text.sources.corpus import TRAIN, VALIDATION, find_files, refuse_same_files
from redraft.text.tokenizers.tokenizer import Tokenizer

SCHEMA = 2
MANIFEST = "manifest.json"
SPLITS = (TRAIN, VALIDATION)
_PACKED = ".bin (packed tokens, which begin with LITPKDS)"


@dataclass(frozen=True)
class ShardRecord:
    """One shard: `bytes` are UTF-8 bytes of its text, of which `lost` do not come back from its ids (counted for validation
    alone); `corpus` is the identity of the corpus that it is part of."""

    file: str
    tokens: int
    documents: int
    bytes: int
    sha256: str
    corpus: str
    lost: int = 0


@dataclass(frozen=True)
class Corpus:
    """Two splits of tokens. `sha256` is of the data; `vocab` is the size of the tokenizer that made it.

    `shared`: documents of the validation source that are in the training source too.
    `parts`: the corpora of a mixture's sources, of which these splits are one after another.
    """

    splits: Mapping[str, Tokens]
    sha256: str
    tokenizer_fingerprint: str
    vocab: int
    source: str
    shared: int = 0
    parts: tuple[Corpus, ...] = ()

    def split(self, name: str) -> Tokens:
        """The tokens of `train` or `validation`."""
        return self.splits[name]

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """The corpus in a folder that `prepare` filled. Raises `UserError` if there is none or a shard is damaged."""
        manifest = read_manifest(folder)
        if manifest is None:
            raise UserError(f"{folder} holds no prepared corpus: it has no {MANIFEST}.")
        return cls(
            splits={name: _opened(folder, manifest["dtype"], manifest["splits"][name]) for name in SPLITS},
            sha256=manifest["sha256"],
            tokenizer_fingerprint=manifest["tokenizer"]["fingerprint"],
            vocab=manifest["tokenizer"]["size"],
            source=manifest["source"],
            shared=manifest.get("shared", 0),
        )

    @classmethod
    def from_packed(cls, train: list[Path], validation: list[Path], tokenizer: Tokenizer, source: str) -> Corpus:
        """LITPKDS files as they are; `sha256` is of their names, lengths and first 4096 bytes (they can be terabytes).

        Raises `UserError` where a file is damaged, or the first tokens are not ids of this tokenizer.
        """
        refuse_same_files(train, validation)
        splits = {TRAIN: packed_tokens(train), VALIDATION: packed_tokens(validation)}
        for tokens in splits.values():
            top = int(tokens.read(0, min(tokens.count, 1 << 20)).max(initial=0))
            if top >= tokenizer.size:
                file = tokens.shards[0].path
                raise UserError(f"{file} holds the id {top}, and {tokenizer.name} has {tokenizer.size}: name its own.")
        heads = (f"{path.name} {path.stat().st_size} {_head(path)}" for path in (*train, *validation))
        digest = hashlib.sha256("\n".join(heads).encode()).hexdigest()
        return cls(splits, digest, tokenizer.fingerprint, tokenizer.size, source)


def spot(corpus: Corpus) -> str:
    """A digest of names, sizes and first 4096 bytes of at most 64 shards, spread over the corpus: whether two machines see the
    same files, without a walk over all of them. Raises `OSError` where one is not there."""
    digest = hashlib.sha256()
    for name in SPLITS:
        shards = corpus.split(name).shards
        for number in sorted({i * len(shards) // 32 for i in range(32)} if shards else ()):
            path = shards[number].path
            digest.update(f"{path.name} {path.stat().st_size} {_head(path)}\n".encode())
    return digest.hexdigest()


def packed_sources(source: str, validation: str | None) -> tuple[list[Path], list[Path]] | None:
    """The packed files for training and validation, or None where the source is not one of packed files.

    A folder or glob that holds both tells them by name, as SMDM's does: `validation*.bin` and all others.
    """
    files = _packed_files(source)
    if not files:
        return None
    if validation is not None:
        return files, find_files(validation, _is_packed, _PACKED)
    held_out = [path for path in files if path.name.startswith("valid")]
    train = [path for path in files if path not in set(held_out)]
    if not (held_out and train):
        raise UserError(f"{source} cannot be split, packed files being without documents: name a validation source.")
    return train, held_out


class ShardWriter:
    """Fills the shards of one split, from where an earlier run was interrupted.

    `documents` is how many of the split's documents lie in the shards that were whole already.
    """

    def __init__(self, folder: Path, split: str, dtype: str, shard_tokens: int, corpus: str) -> None:
        self._folder, self._split, self._dtype = folder, split, np.dtype(dtype)
        self._shard_tokens, self._corpus = shard_tokens, corpus
        self.records = list(self._whole())
        self.documents = sum(record.documents for record in self.records)
        self._start()

    def add(self, ids: NDArray[np.int64], eos: int, text_bytes: int, lost: int = 0) -> None:
        """One document, without its end; `text_bytes` are UTF-8 bytes of its text, of which `lost` do not come back."""
        self._starts.append(self._tokens)
        self._parts.append(np.append(ids, eos).astype(self._dtype))
        self._tokens += len(ids) + 1
        self._bytes += text_bytes
        self._lost += lost
        if self._tokens >= self._shard_tokens:
            self.close()

    def close(self) -> None:
        """Writes the shard that is being filled, if anything is in it: its tokens first, its record last."""
        if not self._tokens:
            return
        name, digest = self._name(len(self.records)), hashlib.sha256()
        with whole_file(self._folder / f"{name}.bin") as file:
            for part in self._parts:
                file.write(part.data)
                digest.update(part.data)
        with whole_file(self._folder / f"{name}.idx.npy") as file:
            np.save(file, np.array(self._starts, np.uint64))
        counts = (self._tokens, len(self._starts), self._bytes)
        record = ShardRecord(f"{name}.bin", *counts, digest.hexdigest(), self._corpus, self._lost)
        write_text(self._folder / f"{name}.json", json.dumps(asdict(record)) + "\n")
        self.records.append(record)
        self._start()

    def _start(self) -> None:
        self._parts: list[NDArray[Any]] = []
        self._starts: list[int] = []
        self._tokens = self._bytes = self._lost = 0

    def _whole(self) -> Iterator[ShardRecord]:
        number = 0
        while (record := self._record(self._name(number))) is not None:
            yield record
            number += 1

    def _record(self, name: str) -> ShardRecord | None:
        """The record of a shard, if the files that it describes are there and whole."""
        try:
            record = ShardRecord(**json.loads((self._folder / f"{name}.json").read_text()))
            with (self._folder / record.file).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            starts = np.load(self._folder / f"{name}.idx.npy")
        except (FileNotFoundError, ValueError, TypeError):
            return None
        if record.corpus != self._corpus:
            raise another_corpus(self._folder)
        return record if found == record.sha256 and len(starts) == record.documents else None

    def _name(self, number: int) -> str:
        return f"{self._split}_{number:05d}"


def token_dtype(tokenizer: Tokenizer) -> str:
    """The narrowest of uint16 and uint32 that holds its ids."""
    return "<u2" if tokenizer.size <= 65535 else "<u4"


def prepared_corpus(source: str, tokenizer: Tokenizer) -> Corpus | None:
    """The corpus in a folder that holds a manifest, as it is; None for any other source.

    Raises `UserError` where its tokens are another tokenizer's.
    """
    folder = Path(source).expanduser()
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not (isinstance(found, dict) and {"corpus", "splits"} <= found.keys()):
        return None  # somebody else's
    corpus = Corpus.open(folder)
    if corpus.tokenizer_fingerprint != tokenizer.fingerprint:
        raise UserError(f"{folder} was tokenised by another tokenizer than {tokenizer.name}: name its own")
    return corpus


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a prepared corpus, None where there is none. Raises `UserError` if it cannot be read."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the manifest of a corpus: prepare into another folder.") from error
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema} and this version reads {SCHEMA}: prepare the corpus again.")
    return manifest


def data_sha256(splits: Mapping[str, list[ShardRecord]]) -> str:
    """One hash for all the shards of a corpus."""
    lines = (f"{split} {record.sha256}\n" for split in SPLITS for record in splits[split])
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def another_corpus(folder: Path) -> UserError:
    """The error for a folder that was filled from something else."""
    return UserError(
        f"{folder} holds a corpus of another source (or of an older state of it) or tokenizer: choose another folder."
    )


def _opened(folder: Path, dtype: str, records: list[dict[str, Any]]) -> Tokens:
    shards = []
    for record in records:
        path, length = folder / record["file"], record["tokens"] * np.dtype(dtype).itemsize
        if not path.is_file() or path.stat().st_size != length:
            raise UserError(f"{path} is missing or not {length} bytes long: remove {folder} and prepare it again.")
        shards.append(Shard(path, record["tokens"], dtype))
    totals = {key: sum(record.get(key, 0) for record in records) for key in ("documents", "bytes", "lost")}
    return Tokens(shards, **totals)


def _packed_files(source: str) -> list[Path]:
    try:
        return find_files(source, _is_packed, _PACKED)
    except UserError:
        return []


def _is_packed(path: Path) -> bool:
    if path.suffix != ".bin":
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(4096)).hexdigest()
