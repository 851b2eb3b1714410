"""Packing: which tokens a training sample holds, a pure function of (seed, sample number) without state.

A split is cut into windows of equal length. Epoch e visits all of them once, in the order of a permutation keyed by
(seed, e): a Feistel network on the smallest even number of bits that holds all windows, walked until it lands inside
(Black & Rogaway 2002, "Ciphers with arbitrary finite domains"). It needs no memory, and being integer arithmetic it
is the same on every machine and with every version of numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from redraft.errors import UserError
from redraft.text.shards.tokens import Tokens

U64 = NDArray[np.uint64]
_CHUNK, _CHUNKS = 4096, 8  # samples whose order is found at a time, and how many times that is kept
_ROUNDS = 8  # four already look random on large domains; small ones need more to reach most of their permutations


@dataclass(frozen=True)
class Rows:
    """Samples as arrays. `lengths` None: every row is whole; else what comes after so many tokens is padding.

    `documents` None: attention crosses the ends of documents; else each token looks at those of its own number alone.
    """

    tokens: NDArray[np.int64]  # [n, L]
    scored: NDArray[np.bool_]  # [n, L]: paid for, never padding
    index: NDArray[np.int64]  # [n] sample numbers
    lengths: NDArray[np.int64] | None = None  # [n]
    documents: NDArray[np.int32] | None = None  # [n, L], from 0 in each row


def given_first(rows: Rows) -> Rows:
    """The rows with the first token of each, and of each document that looks at itself alone, given and not scored."""
    scored = rows.scored.copy()
    scored[:, 0] = False
    if rows.documents is not None:
        scored[:, 1:] &= rows.documents[:, 1:] == rows.documents[:, :-1]
    return replace(rows, scored=scored)


class Blocks:
    """Windows of `length` tokens that do not overlap, in a different order in every epoch.

    Tokens after the last whole window are not used. `boundary`: the id that ends a document, where rows are to say which token
    belongs to which. Raises `UserError` where there is not one whole window.
    """

    def __init__(self, tokens: Tokens, length: int, seed: int, boundary: int | None = None) -> None:
        _require_window(tokens, length)
        self.tokens, self.length, self.seed, self.boundary = tokens, length, seed, boundary
        self.blocks = tokens.count // length
        self._orders: dict[int, NDArray[np.int64]] = {}

    def windows(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The window 0 .. blocks - 1 that each sample number >= 0 holds; int64, of the shape of `index`."""
        chunks, place = np.divmod(np.asarray(index, np.int64), _CHUNK)
        out = np.empty_like(place)
        for chunk in np.unique(chunks).tolist():
            here = chunks == chunk
            out[here] = self._order(chunk)[place[here]]
        return out

    def _order(self, chunk: int) -> NDArray[np.int64]:
        """The windows of `_CHUNK` samples in a row, kept: a permutation of few numbers takes as long as one of many."""
        found = self._orders.get(chunk)
        if found is None:
            epoch, number = np.divmod(chunk * _CHUNK + np.arange(_CHUNK, dtype=np.int64), self.blocks)
            found = permuted(number, epoch, self.blocks, self.seed)
            while len(self._orders) >= _CHUNKS:
                self._orders.pop(next(iter(self._orders)), None)
            self._orders[chunk] = found
        return found

    def sample(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens of samples `index` [n], int64 [n, length]."""
        return self.tokens.windows(self.windows(index) * self.length, self.length)

    def rows(self, index: NDArray[np.int64]) -> Rows:
        """Samples `index` [n], every token of them paid for."""
        return paid_rows(self.sample(index), index, self.boundary)

    def tokens_in(self, samples: int) -> int:
        """Tokens of so many samples."""
        return samples * self.length

    def batch(self, step: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Batch `step` of `size` samples: their tokens, int64 [size, length], and their numbers, int64 [size]."""
        index = step * size + np.arange(size, dtype=np.int64)
        return self.sample(index), index


def ordered_windows(tokens: Tokens, length: int, limit: int | None = None) -> NDArray[np.int64]:
    """At most `limit` windows of the split, evenly spread and in order, int64 [n, length]: what evaluation reads.

    Raises `UserError` where there is not one whole window.
    """
    _require_window(tokens, length)
    whole = tokens.count // length
    n = whole if limit is None else min(limit, whole)
    return tokens.windows(np.arange(n) * whole // n * length, length)


def paid_rows(tokens: NDArray[np.int64], index: NDArray[np.int64], boundary: int | None = None) -> Rows:
    """Windows [n, L] as whole rows, every token of them paid for. With `boundary`, the id that ends a document, each token has
    the number of its own: an end belongs to what it ends."""
    scored = np.ones(tokens.shape, np.bool_)
    if boundary is None:
        return Rows(tokens, scored, index)
    ends = tokens == boundary
    return Rows(tokens, scored, index, documents=np.cumsum(ends, 1, dtype=np.int32) - ends)


def permuted(number: NDArray[np.int64], epoch: NDArray[np.int64], size: int, seed: int) -> NDArray[np.int64]:
    """Where the permutation of 0 .. size - 1 keyed by (seed, epoch) sends each number; arrays of one shape."""
    assert np.all((number >= 0) & (number < size)), "from outside, the walk may never come inside"
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    shape = np.shape(number)
    value, key = (np.ravel(np.asarray(a)).astype(np.uint64) for a in (number, epoch))
    key = _mixed(key + _mixed(np.array([seed % 2**64], np.uint64)))
    outside = np.arange(len(value))
    while len(outside):
        value[outside] = _feistel(value[outside], key[outside], half)
        outside = outside[value[outside] >= np.uint64(size)]
    return value.astype(np.int64).reshape(shape)


def _feistel(value: U64, key: U64, half: int) -> U64:
    """A bijection of 0 .. 4 ** half - 1."""
    shift, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = value >> shift, value & mask
    for number in range(_ROUNDS):
        round_key = _mixed(key + np.array([number], np.uint64))
        left, right = right, left ^ (_mixed(right ^ round_key) & mask)
    return (left << shift) | right


def _mixed(x: U64) -> U64:
    """The finaliser of splitmix64 (Steele et al. 2014), on arrays: numpy warns of overflow on scalars only."""
    x = x + np.array([0x9E3779B97F4A7C15], np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.array([0xBF58476D1CE4E5B9], np.uint64)
    x = (x ^ (x >> np.uint64(27))) * np.array([0x94D049BB133111EB], np.uint64)
    return x ^ (x >> np.uint64(31))


def _require_window(tokens: Tokens, length: int) -> None:
    if length < 1:
        raise UserError(f"a window of {length} tokens is no window: its length is at least 1.")
    if tokens.count < length:
        raise UserError(
            f"the split holds {tokens.count} tokens, fewer than a window of {length}: use more text or shorter ones."
        )
