"""Tokenises a source into shards, once, on all cores, and goes on where a killed run stopped.

In threads (two: 1.9 times the speed of one), or in processes (encoders.py) where the source is large and the cores are many.
What is written is the same on any number of either.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redraft.errors import UserError
from redraft.files import alone, make_folder, write_text
from redraft.text.shards.shards import (
    MANIFEST,
    SCHEMA,
    SPLITS,
    Corpus,
    ShardWriter,
    another_corpus,
    data_sha256,
    packed_sources,
    prepared_corpus,
    read_manifest,
    token_dtype,
)
from redraft.text.sources.corpus import TRAIN, VALIDATION, Assigned, Shared, Source, assigned, open_source
from redraft.text.tokenizers.encoders import OURS, Encoders
from redraft.text.tokenizers.tokenizer import Tokenizer

Progress = Callable[[int, int | None], None]
Encode = Callable[[Sequence[str]], list[NDArray[np.int64]]]

FRACTION = 0.05  # of the documents, held out where no validation source is named
SHARD_TOKENS = 2**26
_BATCH = 1 << 20  # characters in a worker's task
# Processes are worth their start (half a second) from so many bytes of a source, and more than threads from so many workers
# (measured with two: threads 6.6 MB/s, processes 6.0).
_LARGE, _MANY = 1 << 26, 4


def prepare(
    source: str,
    tokenizer: Tokenizer,
    into: Path | Callable[[str], Path],
    *,
    validation: str | None = None,
    fraction: float = FRACTION,
    shard_tokens: int = SHARD_TOKENS,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """The corpus of a source, in the folder `into`, or the one it gives for an identity; made unless it is there.

    `validation` names a source of its own for the validation split, else `fraction` of the documents go there. `workers` is
    a number of threads, or of processes where the source is large and they are many (as many as cores). `progress(done,
    total)` is told in bytes of the source; total may be None.
    Packed LITPKDS files, and folders that hold a prepared corpus, are used where they lie. Raises `UserError` for a source
    that cannot be read or holds no text, for a full disk, and for a folder that holds another corpus.
    """
    if (there := _tokens_already(source, tokenizer, validation)) is not None:
        return there
    plan = _planned(source, tokenizer, validation, fraction, shard_tokens)
    into = into(plan.identity) if callable(into) else into
    if not _is_prepared(plan, into):  # a corpus that is there is only read: the folder may not be ours to write
        make_folder(into)
        with alone(into):
            if not _is_prepared(plan, into):
                _fill(plan, into, workers or cores(), progress)
    return Corpus.open(into)


def prepare_cached(
    source: str,
    tokenizer: Tokenizer,
    cache: Path | None = None,
    *,
    validation: str | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """As `prepare`, into a folder of the cache that is named after the source, its state and the tokenizer."""
    into = lambda identity: (cache or default_cache()) / identity[:16]
    return prepare(source, tokenizer, into, validation=validation, progress=progress)


def at_hand(source: str, tokenizer: Tokenizer, *, validation: str | None = None) -> Corpus | None:
    """What `prepare_cached` would find made already; None where it would have to read text."""
    if (there := _tokens_already(source, tokenizer, validation)) is not None:
        return there
    plan = _planned(source, tokenizer, validation)
    into = default_cache() / plan.identity[:16]
    return Corpus.open(into) if _is_prepared(plan, into) else None


def _tokens_already(source: str, tokenizer: Tokenizer, validation: str | None) -> Corpus | None:
    """The corpus of a source that holds tokens: a prepared folder, or packed files. None for a source of text."""
    if (there := prepared_corpus(source, tokenizer)) is None:
        packed = packed_sources(source, validation)
        return None if packed is None else Corpus.from_packed(*packed, tokenizer, source)
    if validation is not None:
        raise UserError(f"{source} is a prepared corpus, with a validation split of its own: leave data.validation out")
    return there


def default_cache() -> Path:
    """The folder in `REDRAFT_CACHE`, else `~/.cache/redraft`."""
    return Path(os.environ.get("REDRAFT_CACHE") or "~/.cache/redraft").expanduser()


@dataclass(frozen=True)
class _Plan:
    """What a corpus is made of. Equal identities give equal bytes."""

    name: str
    source: Source
    validation: Source | None
    fraction: float
    shard_tokens: int
    tokenizer: Tokenizer
    identity: str

    @property
    def dtype(self) -> str:
        return token_dtype(self.tokenizer)

    @property
    def total(self) -> int | None:
        sizes = [source.total for source in (self.source, self.validation) if source is not None]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def _planned(
    source: str,
    tokenizer: Tokenizer,
    validation: str | None,
    fraction: float = FRACTION,
    shard_tokens: int = SHARD_TOKENS,
) -> _Plan:
    if not 0 < fraction < 1:
        raise UserError(f"the fraction for validation is {fraction}: it must lie between 0 and 1, both excluded.")
    train, held_out = open_source(source), None if validation is None else open_source(validation)
    made_of = {
        "schema": SCHEMA,
        "source": train.identity(),
        "validation": None if held_out is None else held_out.identity(),
        "fraction": None if held_out is not None else fraction,
        "shard_tokens": shard_tokens,
        "tokenizer": tokenizer.fingerprint,
    }
    identity = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    return _Plan(source, train, held_out, fraction, shard_tokens, tokenizer, identity)


def _is_prepared(plan: _Plan, into: Path) -> bool:
    manifest = read_manifest(into)
    if manifest is not None and manifest["corpus"] != plan.identity:
        raise another_corpus(into)
    return manifest is not None


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _fill(plan: _Plan, into: Path, workers: int, progress: Progress | None) -> None:
    writers = {split: ShardWriter(into, split, plan.dtype, plan.shard_tokens, plan.identity) for split in SPLITS}
    shared = Shared()
    documents = assigned(plan.source, plan.validation, plan.fraction, shared)
    left = _without(documents, {split: writer.documents for split, writer in writers.items()})
    with _encoder(plan, workers) as encode:
        for document, ids, text_bytes in _encoded(left, encode, workers):
            lost = plan.tokenizer.lost(document.text, ids) if document.split == VALIDATION else 0
            writers[document.split].add(ids, plan.tokenizer.eos, text_bytes, lost)
            if progress is not None:
                progress(document.read, plan.total)
    for writer in writers.values():
        writer.close()
    _write_manifest(plan, into, writers, shared.common)


def _without(documents: Iterator[Assigned], done: dict[str, int]) -> Iterator[Assigned]:
    """The documents after the first `done[split]` of each split."""
    for document in documents:
        if done[document.split] > 0:
            done[document.split] -= 1
        else:
            yield document


def _encoder(plan: _Plan, workers: int) -> AbstractContextManager[Encode]:
    """How lists of text become ids: here, or in as many processes as there are workers."""
    large = plan.total is None or plan.total >= _LARGE
    if large and workers >= _MANY and isinstance(plan.tokenizer, OURS):
        return Encoders(plan.tokenizer, workers)
    return nullcontext(lambda texts: [plan.tokenizer.encode(text) for text in texts])


def _encoded(
    documents: Iterator[Assigned], encode: Encode, workers: int
) -> Iterator[tuple[Assigned, NDArray[np.int64], int]]:
    """Each document with its ids and its length in UTF-8 bytes, in order; few are in memory at a time."""

    def encoded(batch: list[Assigned]) -> list[tuple[Assigned, NDArray[np.int64], int]]:
        ids = encode([document.text for document in batch])
        return [(document, own, len(document.text.encode())) for document, own in zip(batch, ids, strict=True)]

    batches = _batches(documents)
    with ThreadPoolExecutor(workers) as pool:
        running = deque(pool.submit(encoded, batch) for batch in islice(batches, 2 * workers))
        while running:
            yield from running.popleft().result()
            running.extend(pool.submit(encoded, batch) for batch in islice(batches, 1))


def _batches(documents: Iterator[Assigned]) -> Iterator[list[Assigned]]:
    batch: list[Assigned] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_manifest(plan: _Plan, into: Path, writers: dict[str, ShardWriter], shared: int) -> None:
    splits = {split: writer.records for split, writer in writers.items()}
    if not splits[TRAIN]:
        raise UserError(f"{plan.name} holds no text: name a source that does.")
    if not splits[VALIDATION]:
        raise UserError("the validation source holds no text: name one that does, or none.")
    tokenizer = {key: getattr(plan.tokenizer, key) for key in ("name", "fingerprint", "size", "eos")}
    manifest = {
        "schema": SCHEMA,
        "corpus": plan.identity,
        "source": plan.name,
        "tokenizer": tokenizer,
        "dtype": plan.dtype,
        "shared": shared,
        "splits": {split: [asdict(record) for record in records] for split, records in splits.items()},
        "sha256": data_sha256(splits),
    }
    write_text(into / MANIFEST, json.dumps(manifest, indent=1) + "\n")
