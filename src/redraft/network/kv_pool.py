"""A KV cache for texts that come and go: a row a text, rows kept together so that a call for all of them copies nothing.

Not to be confused with paged attention: a row has all its slots at once. A row that ends is filled by the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.network.sizes import Shape


class Pool:
    """Keys and values [R, h, S + 1, D] a layer, of which the first rows are in use. R and S grow by doubling. The last slot is
    for padding, which nobody looks at."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype):
        self.shape, self.device, self.dtype = shape, device, dtype
        self.rows: list[PoolRow] = []
        self.store: list[Tensor] = [self._empty(0, 0) for _ in range(2 * shape.depth)]

    def _empty(self, rows: int, slots: int) -> Tensor:
        return torch.zeros(rows, self.shape.keys, slots + 1, self.shape.head, device=self.device, dtype=self.dtype)

    @property
    def slots(self) -> int:
        """S, of each row."""
        return self.store[0].shape[2] - 1

    def add(self, size: int) -> RowCache:
        """An empty cache of one more row."""
        self._grow(len(self.rows) + 1, size)
        row = PoolRow(len(self.rows))
        self.rows.append(row)
        slots = torch.zeros(1, 0, dtype=torch.int64, device=self.device)
        return RowCache(self, row, size, slots)

    def _grow(self, rows: int, slots: int) -> None:
        there = len(self.store[0])
        if rows <= there and slots <= self.slots:
            return
        rows = max(there, 2 ** (rows - 1).bit_length()) if rows > there else there
        slots = max(self.slots, 2 ** (slots - 1).bit_length()) if slots > self.slots else self.slots
        for number, old in enumerate(self.store):
            self.store[number] = self._empty(rows, slots)
            self.store[number][: len(old), :, : old.shape[2] - 1] = old[:, :, :-1]

    def remove(self, cache: RowCache) -> None:
        """Give a row back; the last one takes its place."""
        moved = self.rows.pop()
        if moved is not cache.row:
            for part in self.store:
                part[cache.row.number] = part[moved.number]
            self.rows[cache.row.number] = moved
            moved.number = cache.row.number

    def call(self, caches: Sequence[RowCache], slots: Tensor) -> PoolCall:
        """For a view of the rows of `caches`, whose tokens go to `slots` [n, Q]."""
        numbers = [cache.row.number for cache in caches]
        together = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        which = slice(numbers[0], numbers[0] + len(numbers)) if together else torch.tensor(numbers, device=self.device)
        depth = self.shape.depth
        return PoolCall(tuple(self.store[:depth]), tuple(self.store[depth:]), which, slots)


@dataclass(eq=False)
class PoolRow:
    """Which row of the pool a text has now."""

    number: int


@dataclass(frozen=True)
class RowCache:
    """The cache of one text, as its sampler sees it (`types.Cache`)."""

    pool: Pool
    row: PoolRow
    size: int
    slots: Tensor
    run: slice | None = None

    def at(self, slots: Tensor, run: slice | None = None) -> RowCache:
        return replace(self, slots=slots, run=run)

    def causal(self) -> Tensor:
        return torch.arange(self.size, device=self.slots.device) <= self.slots[:, :, None]


@dataclass(frozen=True)
class PoolCall:
    """What the network is given for a call of several rows: see `kv_cache.KVCache`."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    rows: slice | Tensor
    slots: Tensor

    def at(self, slots: Tensor, run: slice | None = None) -> PoolCall:
        return replace(self, slots=slots)

    def causal(self) -> Tensor:
        return torch.arange(self.keys[0].shape[2], device=self.slots.device) <= self.slots[:, :, None]

    def layer(self, number: int) -> PoolLayer:
        return PoolLayer(self.keys[number], self.values[number], self.rows, self.slots)


@dataclass(frozen=True)
class PoolLayer:
    """One layer's keys and values, and where those of the coming view go. See `kv_cache.LayerCache`."""

    keys: Tensor
    values: Tensor
    rows: slice | Tensor
    slots: Tensor
    run: None = None

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put [n, h, Q, D] into their slots. Returns all that these rows keep, [n, h, S + 1, D]."""
        return self._write(self.keys, keys), self._write(self.values, values)

    def _write(self, store: Tensor, new: Tensor) -> Tensor:
        new = new.transpose(1, 2).to(store.dtype)
        if isinstance(self.rows, slice):
            own = store[self.rows]
            own[torch.arange(len(own), device=own.device)[:, None], :, self.slots] = new
            return own
        store[self.rows[:, None], :, self.slots] = new
        return store[self.rows]
