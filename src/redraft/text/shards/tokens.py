"""A stream of tokens over several files that reads as one array.

Files are read by position (`pread`), not mapped: what is lost or cut short while a run reads it is then an error with a name,
where a map would end the process by a signal.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redraft.errors import UserError

_OPEN_FILES = 256  # a process may often hold 1024; SlimPajama in TinyLlama's packing is 300 000 files


@dataclass(frozen=True)
class Shard:
    """`count` tokens of a little-endian `dtype`, from byte `offset` of a file on."""

    path: Path
    count: int
    dtype: str
    offset: int = 0

    def map(self) -> NDArray[Any]:
        """The tokens, memory-mapped, [count]."""
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=(self.count,))


class LostShard(UserError, OSError):
    """A file of tokens that is gone, or not as it was, when it is read."""

    def __init__(self, shard: Shard, why: str) -> None:
        super().__init__(
            f"{shard.path} was lost while it was read ({why}): bring it back, and the same command goes on"
        )


class _File:
    """A file to read from, closed when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.descriptor)


class Tokens:
    """Shards one after another. `bytes` (UTF-8, of the text) and `documents` are None where they are not known.

    `lost`: of the bytes, those that do not come back from the tokens."""

    def __init__(self, shards: Sequence[Shard], *, documents: int | None, bytes: int | None, lost: int = 0) -> None:
        self.shards = tuple(shards)
        self.documents = documents
        self.bytes, self.lost = bytes, lost
        self._ends = np.cumsum([shard.count for shard in self.shards], dtype=np.int64)
        self._begins = self._ends - np.array([shard.count for shard in self.shards], np.int64)
        self._dtypes = sorted({shard.dtype for shard in self.shards})
        self._files: dict[int, _File] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # the copy opens the files again
        return _tokens, (self.shards, self.documents, self.bytes, self.lost)

    @property
    def count(self) -> int:
        """Tokens, ends of documents included."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes of text per token (ends of documents count as tokens, not as text)."""
        return None if self.bytes is None else self.bytes / self.count

    @property
    def lost_share(self) -> float:
        """Of the bytes of text, those that do not come back from its tokens."""
        return self.lost / self.bytes if self.bytes else 0.0

    def read(self, start: int, n: int) -> NDArray[np.int64]:
        """Tokens start .. start + n, int64 [n], across shards. Raises `ValueError` outside of the stream, and `LostShard`
        for a file that is not whole any more."""
        return self.windows(np.array([start], np.int64), n)[0]

    def windows(self, starts: NDArray[np.int64], n: int) -> NDArray[np.int64]:
        """The `n` tokens from each of `starts` [w] on, int64 [w, n]; raises as `read` does."""
        if n < 0 or (len(starts) and (starts.min() < 0 or starts.max() + n > self.count)):
            first, last = (int(starts.min()), int(starts.max()) + n) if len(starts) else (0, n)
            raise ValueError(f"tokens {first} to {last} were asked for and there are {self.count}")
        if len(self._dtypes) > 1:
            parts = [self._row(start, n) for start in starts.tolist()]
            return np.stack(parts) if parts else np.empty((0, n), np.int64)
        out = np.empty((len(starts), n), self._dtypes[0] if self._dtypes else "<u2")
        if not out.size:
            return out.astype(np.int64)
        rows, size = out.data.cast("B"), n * out.itemsize
        shards = np.searchsorted(self._ends, starts, side="right")
        places, whole = (starts - self._begins[shards]) * out.itemsize, starts + n <= self._ends[shards]
        for row, (shard, place) in enumerate(zip(shards.tolist(), places.tolist(), strict=True)):
            if whole[row]:
                rows[row * size : (row + 1) * size] = self._bytes(shard, place, size)
            else:
                out[row] = self._row(int(starts[row]), n)
        return out.astype(np.int64)

    def _row(self, start: int, n: int) -> NDArray[np.int64]:
        """Tokens start .. start + n, from as many shards as they lie in."""
        out, done = np.empty(n, np.int64), 0
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while done < n:
            dtype, begin = np.dtype(self.shards[shard].dtype), start + done - int(self._begins[shard])
            count = min(n - done, self.shards[shard].count - begin)
            part = np.frombuffer(self._bytes(shard, begin * dtype.itemsize, count * dtype.itemsize), dtype)
            out[done : done + count] = part
            done, shard = done + count, shard + 1
        return out

    def _bytes(self, number: int, place: int, size: int) -> bytes:
        """Bytes of one shard's tokens, from byte `place` of them on."""
        shard = self.shards[number]
        try:
            file = self._file(number)  # held while it is read: another thread may evict it
            data = os.pread(file.descriptor, size, shard.offset + place)
        except OSError as error:
            raise LostShard(shard, os.strerror(error.errno or 0)) from None
        if len(data) != size:
            raise LostShard(shard, "it is cut short")
        return data

    def _file(self, number: int) -> _File:
        """Evicted files close themselves when nobody reads them any more, threads included."""
        file = self._files.get(number)
        if file is None:
            while len(self._files) >= _OPEN_FILES:
                self._files.pop(next(iter(self._files)), None)
            file = self._files[number] = _File(self.shards[number].path)
        return file


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Streams one after another."""
    documents, size = ([getattr(part, name) for part in parts] for name in ("documents", "bytes"))
    total = lambda counts: None if None in counts else sum(counts)
    shards, lost = [shard for part in parts for shard in part.shards], sum(part.lost for part in parts)
    return Tokens(shards, documents=total(documents), bytes=total(size), lost=lost)


def _tokens(shards: tuple[Shard, ...], documents: int | None, bytes: int | None, lost: int) -> Tokens:
    return Tokens(shards, documents=documents, bytes=bytes, lost=lost)
