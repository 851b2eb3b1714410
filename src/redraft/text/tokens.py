"""A stream of tokens that lies in memory-mapped files and reads as one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_OPEN_MAPS = 1024  # a process may hold about 65 000; SlimPajama in TinyLlama's packing is 300 000 files


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


class Tokens:
    """Shards one after another. `bytes` (UTF-8, of the text) and `documents` are None where they are not known."""

    def __init__(self, shards: Sequence[Shard], *, documents: int | None, bytes: int | None) -> None:
        self.shards = tuple(shards)
        self.documents = documents
        self.bytes = bytes
        self._ends = np.cumsum([shard.count for shard in self.shards], dtype=np.int64)
        self._maps: dict[int, NDArray[Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # a pickled map would carry its tokens: the copy maps the files again
        return _tokens, (self.shards, self.documents, self.bytes)

    @property
    def count(self) -> int:
        """Tokens, ends of documents included."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes of text per token (ends of documents count as tokens, not as text)."""
        return None if self.bytes is None else self.bytes / self.count

    def read(self, start: int, n: int) -> NDArray[np.int64]:
        """Tokens start .. start + n, int64 [n], across shards. Raises `ValueError` outside of the stream."""
        if start < 0 or n < 0 or start + n > self.count:
            raise ValueError(f"tokens {start} to {start + n} were asked for and there are {self.count}")
        out = np.empty(n, np.int64)
        shard, done = int(np.searchsorted(self._ends, start, side="right")), 0
        while done < n:
            begin = start + done - (int(self._ends[shard]) - self.shards[shard].count)
            part = self._map(shard)[begin : begin + n - done]
            out[done : done + len(part)] = part
            done, shard = done + len(part), shard + 1
        return out

    def _map(self, shard: int) -> NDArray[Any]:
        if shard not in self._maps:
            if len(self._maps) >= _OPEN_MAPS:
                del self._maps[next(iter(self._maps))]
            self._maps[shard] = self.shards[shard].map()
        return self._maps[shard]


def _tokens(shards: tuple[Shard, ...], documents: int | None, bytes: int | None) -> Tokens:
    return Tokens(shards, documents=documents, bytes=bytes)
