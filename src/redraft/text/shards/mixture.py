"""Mixtures of sources by weight: the source of a sample, and its number there, are functions of the sample's number.

So a mixture has no state: any rank, and any resumed run, finds the place of any sample by itself. Weights are honoured all
along, not only in the mean: after any number of samples a source is within half a sample for each source of its share.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from redraft.config import DataConfig, PhaseConfig, SourceConfig
from redraft.errors import UserError
from redraft.text.shards.packing import Blocks, Rows, ordered_windows, paid_rows
from redraft.text.shards.prepare import Progress, prepare_cached
from redraft.text.shards.shards import SPLITS, Corpus
from redraft.text.shards.tokens import Tokens, joined
from redraft.text.sources.corpus import local_files, refuse_same_files
from redraft.text.tokenizers.tokenizer import Tokenizer

Index = NDArray[np.int64]
_FINEST = 1 << 24  # weights are whole numbers up to here; with sample numbers below 2 ** 38 no product leaves 64 bits


class SampleIndex(NamedTuple):
    """Of samples: the source 0 .. k - 1 that each comes from, and its number among that source's samples."""

    source: Index
    number: Index


@dataclass(frozen=True)
class Shares:
    """Sources in whole-number weights, smallest first. Source after source takes its part of what those before it left,
    evenly spread: of n samples left, floor(n a / A + 1/2) (Beatty's sequences), a of the A parts being its own."""

    parts: tuple[int, ...]

    @staticmethod
    def of(weights: Sequence[float]) -> Shares:
        """Decimal weights as the ratios they write, 0.7 being 7 / 10; rounded to 1 / 2^24 of their sum where finer."""
        exact = [Fraction(str(weight)) for weight in weights]
        common = math.lcm(*(weight.denominator for weight in exact))
        whole = [int(weight * common) for weight in exact]
        if sum(whole) > _FINEST:
            whole = [max(1, round(part * Fraction(_FINEST, sum(whole)))) for part in whole]
        shared = math.gcd(*whole)
        return Shares(tuple(part // shared for part in whole))

    def places(self, index: Index) -> SampleIndex:
        """Where samples 0, 1, 2, ... come from."""
        left, source, number = index.copy(), np.zeros_like(index), np.zeros_like(index)
        waiting = np.ones(index.shape, np.bool_)
        for own, before, mine in self._turns(left):
            taken = waiting & mine
            source[taken], number[taken] = own, before[taken]
            waiting &= ~mine
            left -= before
        return SampleIndex(source, number)

    def counts(self, samples: int) -> list[int]:
        """Of the first so many samples, how many come from each source."""
        out, left = [0] * len(self.parts), np.array([samples], np.int64)
        for own, before, _ in self._turns(left):
            out[own] = int(before[0])
            left -= before
        return out

    def _turns(self, left: Index) -> Iterator[tuple[int, Index, NDArray[np.bool_]]]:
        """Source after source: how many of the `left` samples before this one are its own, and whether this one is."""
        total = sum(self.parts)
        for own in sorted(range(len(self.parts)), key=self.parts.__getitem__):
            part = self.parts[own]
            before = (left * part + total // 2) // total if part < total else left.copy()
            after = ((left + 1) * part + total // 2) // total
            yield own, before, after > before
            total -= part


class Mixed:
    """Samples of several `Blocks` by the mixtures of one phase after another; each source goes on where it stood.

    `weights[p][s]`: of source s in phase p, 0 where it has none. `ends`: the sample number at which each phase ends, but
    for the last, which does not.
    """

    def __init__(self, blocks: Sequence[Blocks], weights: Sequence[Sequence[float]], ends: Sequence[int]) -> None:
        self.blocks, self.starts = tuple(blocks), np.array([0, *ends], np.int64)
        self.own = [np.flatnonzero(phase) for phase in weights]
        self.shares = [Shares.of([w for w in phase if w]) for phase in weights]
        self.before = np.zeros((len(weights), len(blocks)), np.int64)
        for phase, (start, end) in enumerate(pairwise(self.starts.tolist())):
            self.before[phase + 1] = self.before[phase]
            self.before[phase + 1, self.own[phase]] += self.shares[phase].counts(end - start)

    def places(self, index: Index) -> SampleIndex:
        """The source of each sample number [n], and its number there."""
        index = np.asarray(index, np.int64)
        phases = np.searchsorted(self.starts, index, side="right") - 1
        source, number = np.empty_like(index), np.empty_like(index)
        for phase in np.unique(phases).tolist():
            here = phases == phase
            found = self.shares[phase].places(index[here] - self.starts[phase])
            source[here] = self.own[phase][found.source]
            number[here] = found.number + self.before[phase, source[here]]
        return SampleIndex(source, number)

    def rows(self, index: Index) -> Rows:
        """Samples `index` [n], every token of them paid for."""
        place = self.places(index)
        tokens = np.empty((len(index), self.blocks[0].length), np.int64)
        for source in np.unique(place.source).tolist():
            here = place.source == source
            tokens[here] = self.blocks[source].sample(place.number[here])
        return paid_rows(tokens, index, self.blocks[0].boundary)

    def tokens_in(self, samples: int) -> int:
        """Tokens of so many samples."""
        return samples * self.blocks[0].length


def phases_of(data: DataConfig) -> list[PhaseConfig]:
    """The phases of the data; a mixture is one, and a source a mixture of one."""
    if data.phases:
        return data.phases
    single = [SourceConfig(source=data.source, validation=data.validation)]
    return [PhaseConfig(until=1.0, mixture=data.mixture or single)]


def prepare_text(
    data: DataConfig, tokenizer: Tokenizer, cache: Path | None = None, progress: Progress | None = None
) -> Corpus:
    """The corpus of a source, or of all the sources of a mixture: its splits are then theirs one after another, and `parts`
    are the corpora by their names in the order in which they first appear. Raises `UserError` as `prepare_cached` does."""
    named = _named(phases_of(data))
    _refuse_shared(named.values())
    corpora = {
        key: prepare_cached(one.source, tokenizer, cache, validation=one.validation, progress=progress)
        for key, one in named.items()
    }
    if not (data.mixture or data.phases):
        return next(iter(corpora.values()))
    digest = hashlib.sha256("\n".join(corpus.sha256 for corpus in corpora.values()).encode()).hexdigest()
    splits = {split: joined([corpus.split(split) for corpus in corpora.values()]) for split in SPLITS}
    source = " + ".join(one.source for one in named.values())
    shared = sum(corpus.shared for corpus in corpora.values())
    return Corpus(splits, digest, tokenizer.fingerprint, tokenizer.size, source, shared, tuple(corpora.values()))


def samples_of(corpus: Corpus, data: DataConfig, eos: int, seed: int, samples: int) -> Blocks | Mixed:
    """The samples of a run of so many, in their order. Phases end at their share of them.

    Raises `UserError` where a source has not one whole window, or a phase not one sample.
    """
    boundary = eos if data.intra_document_mask else None
    if not corpus.parts:
        return Blocks(corpus.split("train"), data.length, seed, boundary)
    phases = phases_of(data)
    blocks = [
        Blocks(part.split("train"), data.length, seed + number, boundary) for number, part in enumerate(corpus.parts)
    ]
    ends = [round(phase.until * samples) for phase in phases[:-1]]
    if any(a >= b for a, b in pairwise([0, *ends, samples])):
        raise UserError(f"data.phases: a run of {samples} samples leaves a phase without one: train for longer")
    return Mixed(blocks, _weights(phases), ends)


def held_out_rows(corpus: Corpus, data: DataConfig, eos: int, limit: int | None) -> Rows:
    """Windows of validation, evenly spread over the split; of a mixture, from each source by its weight in the last phase.

    The same whatever the number of ranks. At most `limit`; of a mixture without one, as many as its sources allow by weight.
    """
    boundary = eos if data.intra_document_mask else None
    found = [ordered_windows(split, data.length, n) for split, n in held_out_counts(corpus, data, limit) if n]
    windows = np.concatenate(found)
    return paid_rows(windows, np.arange(len(windows)), boundary)


def held_out_counts(corpus: Corpus, data: DataConfig, limit: int | None) -> list[tuple[Tokens, int]]:
    """The validation splits of the sources of the last phase, and how many windows of each are scored: known without reading
    a token. `UserError` names a source whose split has not one whole row."""
    if not corpus.parts:
        _require_row(corpus, data.length)
        whole = corpus.split("validation").count // data.length
        return [(corpus.split("validation"), whole if limit is None else min(limit, whole))]
    splits, weights = [part.split("validation") for part in corpus.parts], _weights(phases_of(data))[-1]
    own = np.flatnonzero(weights)
    for source in own.tolist():
        _require_row(corpus.parts[source], data.length)
    there = [split.count // data.length for split in splits]
    total = min(int(n * sum(weights) / w) for n, w in zip(there, weights, strict=True) if w)
    counts = Shares.of([w for w in weights if w]).counts(total if limit is None else min(limit, total))
    return [(splits[source], count) for source, count in zip(own.tolist(), counts, strict=True)]


def _require_row(corpus: Corpus, length: int) -> None:
    there = corpus.split("validation").count
    if there < length:
        raise UserError(
            f"the validation split of {corpus.source} holds {there} tokens, fewer than one row of {length}: give more text, "
            f"name a longer validation source (data.validation), or use shorter rows (--length)"
        )


def _refuse_shared(sources: Iterable[SourceConfig]) -> None:
    """`UserError` where one source is validated on a file that another is trained on."""
    for one in sources:
        for other in sources if one.validation is not None else ():
            refuse_same_files(local_files(other.source), local_files(str(one.validation)))


def _named(phases: Sequence[PhaseConfig]) -> dict[tuple[str, str | None], SourceConfig]:
    """The sources of all phases, each once."""
    out: dict[tuple[str, str | None], SourceConfig] = {}
    for phase in phases:
        for one in phase.mixture:
            out.setdefault((one.source, one.validation), one)
    return out


def _weights(phases: Sequence[PhaseConfig]) -> list[list[float]]:
    """Of each source in each phase, 0 where it is not part of it."""
    names = list(_named(phases))
    out = [[0.0] * len(names) for _ in phases]
    for row, phase in zip(out, phases, strict=True):
        for one in phase.mixture:
            row[names.index((one.source, one.validation))] += one.weight
    return out
