"""Prompt-completion examples as tokens, one row each, encoded once and cached.

Parts are encoded one by one, so where a prompt ends does not depend on what follows it. An example longer than a row is
skipped, or cut at its end; one of which nothing is left to learn is skipped. Both are counted.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from redraft.errors import UserError
from redraft.files import make_folder, read_text, whole_file
from redraft.text.examples.chat import END, TEMPLATES
from redraft.text.examples.prompts import Part, Record, read_prompts
from redraft.text.shards.packing import Rows, permuted
from redraft.text.shards.prepare import Progress, cores, default_cache
from redraft.text.sources.corpus import TRAIN, VALIDATION, Shared, Source, in_validation, open_source, refuse_shared
from redraft.text.tokenizers.tokenizer import Tokenizer

SCHEMA = 1
FRACTION = 0.05  # of the records that are held out where no validation source is named
Eos = Literal["one", "fill", "none"]
Overlong = Literal["skip", "truncate"]
Encoded = tuple[NDArray[np.int64], NDArray[np.bool_]]
_BATCH = 64  # records in a thread's task


@dataclass(frozen=True)
class Recipe:
    """How records become rows of at most `length` tokens. `eos`: after the last completion comes one end of text, which is
    paid for ("one"), or ends up to the whole length ("fill", as SMDM's and LLaDA's fine-tuning), or none."""

    form: str
    style: str | None
    length: int
    eos: Eos = "one"
    overlong: Overlong = "skip"


@dataclass(frozen=True)
class Examples:
    """One split, end to end: example i holds tokens starts[i] .. starts[i + 1]. `bytes` are UTF-8 bytes of what is paid for;
    `truncated` of the examples were cut, and `skipped` are not among them."""

    tokens: NDArray[np.int32]
    paid: NDArray[np.bool_]
    starts: NDArray[np.int64]
    bytes: int
    truncated: int
    skipped: int
    lost: int = 0

    @property
    def lost_share(self) -> float:
        """Of the bytes of completions, those that do not come back from their tokens."""
        return self.lost / self.bytes if self.bytes else 0.0

    @property
    def count(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of completions per token paid for."""
        return self.bytes / int(self.paid.sum())

    def read(self, numbers: NDArray[np.int64], index: NDArray[np.int64]) -> Rows:
        """Those examples as the samples `index`, padded with zeros to the longest."""
        lengths = self.lengths[numbers]
        tokens = np.zeros((len(numbers), int(lengths.max())), np.int64)
        scored = np.zeros(tokens.shape, np.bool_)
        for row, (number, length) in enumerate(zip(numbers.tolist(), lengths.tolist(), strict=True)):
            here = slice(self.starts[number], self.starts[number] + length)
            tokens[row, :length], scored[row, :length] = self.tokens[here], self.paid[here]
        return Rows(tokens, scored, index, lengths)

    def spread(self, limit: int | None = None) -> Rows:
        """At most `limit` examples, evenly spread and in order: what evaluation reads."""
        n = self.count if limit is None else min(limit, self.count)
        return self.read(np.arange(n) * self.count // n, np.arange(n))


@dataclass(frozen=True)
class Shuffled:
    """Examples in a new order in every epoch: which one a sample holds is a function of (seed, sample number)."""

    examples: Examples
    seed: int

    def rows(self, index: NDArray[np.int64]) -> Rows:
        epoch, number = np.divmod(np.asarray(index, np.int64), self.examples.count)
        return self.examples.read(permuted(number, epoch, self.examples.count, self.seed), index)

    def tokens_in(self, samples: int) -> int:
        """Tokens, without padding, of the first so many samples."""
        epochs, rest = divmod(samples, self.examples.count)
        lengths, number = self.examples.lengths, np.arange(rest)
        last = permuted(number, np.full(rest, epochs), self.examples.count, self.seed)
        return epochs * int(lengths.sum()) + int(lengths[last].sum())


@dataclass(frozen=True)
class PromptCorpus:
    """Two splits of examples. `sha256` is of the data."""

    splits: dict[str, Examples]
    sha256: str

    def split(self, name: str) -> Examples:
        """The examples of `train` or `validation`."""
        return self.splits[name]


def prepare_prompts(
    source: str,
    tokenizer: Tokenizer,
    recipe: Recipe,
    *,
    validation: str | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> PromptCorpus:
    """The examples of a source; without one for validation, a share of the records is held out, as documents are.

    `progress(done, total)` is told in bytes of text.
    Raises `UserError` for a malformed record, for a source whose examples are all too long, and as `prepare` does.
    """
    train, held_out = open_source(source), None if validation is None else open_source(validation)
    refuse_shared(train, held_out)
    path = (cache or default_cache()) / f"prompts-{_identity(train, held_out, tokenizer, recipe)[:16]}.npz"
    stored = _stored(path)
    if stored is None:
        splits = _encoded(source, validation, tokenizer, recipe, progress)
        for name, examples in splits.items():
            _require_some(examples, validation or source if name == VALIDATION else source, name, recipe)
        _store(path, splits)
        stored = splits
    digest = hashlib.sha256()
    for name in (TRAIN, VALIDATION):
        for array in (stored[name].tokens, stored[name].paid, stored[name].starts):
            digest.update(array.tobytes())
    return PromptCorpus(stored, digest.hexdigest())


def foreseen_examples(source: str, validation: str | None, tokenizer: Tokenizer, recipe: Recipe, limit: int) -> int:
    """How many examples will be held out, counted up to `limit`, without encoding those to train on."""
    found = _Filling()
    for name, record in _assigned(source, validation, recipe):
        for parts in record.examples if name == VALIDATION else ():
            found.add(parts, encoded(parts, tokenizer, recipe.eos, recipe.length), tokenizer, recipe)
        if len(found.tokens) >= limit:
            break
    return min(limit, len(found.tokens))


class _Filling:
    """The examples of one split, as they come."""

    def __init__(self) -> None:
        self.tokens: list[NDArray[np.int32]] = []
        self.paid: list[NDArray[np.bool_]] = []
        self.bytes = self.truncated = self.skipped = self.lost = 0

    def add(self, parts: tuple[Part, ...], ids: Encoded, tokenizer: Tokenizer, recipe: Recipe) -> None:
        tokens, paid = ids
        over = len(tokens) > recipe.length
        learned = np.flatnonzero(paid[: recipe.length])
        if over and (recipe.overlong == "skip" or not len(learned)):
            self.skipped += 1
            return
        keep = learned[-1] + 1
        self.tokens.append(tokens[:keep].astype(np.int32))
        self.paid.append(paid[:keep])
        self.truncated += over
        said = tokens[:keep][paid[:keep]]
        text = tokenizer.decode(said) if over else "".join(p.text for p in parts if p.paid).replace(END, "")
        self.bytes += len(text.encode())
        self.lost += tokenizer.lost(text, said)

    def done(self) -> Examples:
        starts = np.cumsum([0, *map(len, self.tokens)], dtype=np.int64)
        tokens = np.concatenate([np.zeros(0, np.int32), *self.tokens])
        paid = np.concatenate([np.zeros(0, np.bool_), *self.paid])
        return Examples(tokens, paid, starts, self.bytes, self.truncated, self.skipped, self.lost)


def encoded(parts: tuple[Part, ...], tokenizer: Tokenizer, eos: Eos, length: int) -> Encoded:
    """The ids of an example, and which of them are paid for."""
    ids, paid = [np.zeros(0, np.int64)], [np.zeros(0, np.bool_)]
    for text, learned in parts:
        for number, piece in enumerate(text.split(END)):
            if number:
                ids.append(np.array([tokenizer.eos]))
                paid.append(np.array([learned]))
            if piece:
                ids.append(tokenizer.encode_after(piece) if len(ids) > 1 else tokenizer.encode(piece))
                paid.append(np.full(len(ids[-1]), learned))
    ended, used = parts[-1].text.endswith(END), sum(map(len, ids))
    ends = {"none": 0, "one": int(not ended), "fill": max(int(not ended), length - used)}[eos]
    return np.concatenate([*ids, np.full(ends, tokenizer.eos)]), np.concatenate([*paid, np.ones(ends, np.bool_)])


def _bytes(parts: tuple[Part, ...]) -> int:
    """UTF-8 bytes of the text in the parts, ends of text not counted."""
    return sum(len(part.text.replace(END, "").encode()) for part in parts)


def _encoded(
    source: str, validation: str | None, tokenizer: Tokenizer, recipe: Recipe, progress: Progress | None
) -> dict[str, Examples]:
    """Every record is read before the first is encoded, so that a malformed one is soon found."""
    splits, done = {TRAIN: _Filling(), VALIDATION: _Filling()}, 0
    records = list(_assigned(source, validation, recipe))
    if validation is not None:
        _refuse_shared([(name, repr(record.examples)) for name, record in records], validation)
    total = sum(_bytes(parts) for _, record in records for parts in record.examples)
    batches = [records[start : start + _BATCH] for start in range(0, len(records), _BATCH)]

    def encode(batch: list[tuple[str, Record]]) -> list[list[Encoded]]:
        each = lambda record: [encoded(parts, tokenizer, recipe.eos, recipe.length) for parts in record.examples]
        return [each(record) for _, record in batch]

    with ThreadPoolExecutor(cores()) as pool:
        for batch, found in zip(batches, pool.map(encode, batches), strict=True):
            for (name, record), examples in zip(batch, found, strict=True):
                for parts, ids in zip(record.examples, examples, strict=True):
                    splits[name].add(parts, ids, tokenizer, recipe)
                    done += _bytes(parts)
                if progress is not None:
                    progress(done, total)
    return {name: filling.done() for name, filling in splits.items()}


def _assigned(source: str, validation: str | None, recipe: Recipe) -> Iterator[tuple[str, Record]]:
    """Every record with its split: the examples of one record are never parted."""
    for number, record in enumerate(read_prompts(source, recipe.form, recipe.style)):
        held_out = validation is None and in_validation(number, str(number), FRACTION)
        yield VALIDATION if held_out else TRAIN, record
    if validation is not None:
        yield from ((VALIDATION, record) for record in read_prompts(validation, recipe.form, recipe.style))


def _refuse_shared(records: list[tuple[str, str]], validation: str) -> None:
    """`UserError` where most records of validation are trained on too, whatever file they lie in."""
    train, held_out = ({text for name, text in records if name == split} for split in (TRAIN, VALIDATION))
    Shared(len(held_out), len(held_out & train)).refuse(validation)


def _require_some(examples: Examples, source: str, split: str, recipe: Recipe) -> None:
    if examples.count:
        return
    if examples.skipped:
        mend = "use longer rows, or data.overlong truncate" if recipe.overlong == "skip" else "use longer rows"
        raise UserError(
            f"all {examples.skipped} examples of {source} for {split} are longer than data.length {recipe.length}: {mend}."
        )
    raise UserError(f"{source} holds no example for {split}: give more of them, or name a validation source.")


def _identity(train: Source, validation: Source | None, tokenizer: Tokenizer, recipe: Recipe) -> str:
    style = recipe.style or ""
    written = Path(style).expanduser()
    made_of = {
        "schema": SCHEMA,
        "source": train.identity(),
        "validation": None if validation is None else validation.identity(),
        "tokenizer": tokenizer.fingerprint,
        "recipe": [recipe.form, style, recipe.length, recipe.eos, recipe.overlong],
        "template": TEMPLATES.get(style) or (read_text(written) if written.is_file() else ""),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _store(path: Path, splits: dict[str, Examples]) -> None:
    make_folder(path.parent)
    arrays: dict[str, NDArray[Any]] = {}
    for name, e in splits.items():
        counts = np.array([e.bytes, e.truncated, e.skipped, e.lost])
        arrays |= {
            f"{name}.tokens": e.tokens,
            f"{name}.paid": e.paid,
            f"{name}.starts": e.starts,
            f"{name}.counts": counts,
        }
    with whole_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _stored(path: Path) -> dict[str, Examples] | None:
    """What an earlier run encoded; None where it did not, or the file is damaged."""
    try:
        with np.load(path) as file:
            return {
                name: Examples(
                    *(file[f"{name}.{part}"] for part in ("tokens", "paid", "starts")), *file[f"{name}.counts"].tolist()
                )
                for name in (TRAIN, VALIDATION)
            }
    except (FileNotFoundError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
