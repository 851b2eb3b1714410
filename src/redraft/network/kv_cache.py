"""The KV cache, an object that a sampler makes and passes in a `View`; and a pool of them, for texts that come and go.

Keys are stored rotated, so nothing is done to them again. A slot is a place in *generation* order, not in the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.accelerator import accelerated
from redraft.network.sizes import Shape
from redraft.types import Attention


@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values [B, h, S, D], and where those of the coming view go. See `KVCache`."""

    keys: Tensor
    values: Tensor
    slots: Tensor
    run: slice | None

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put [B, h, Q, D] into their slots. Returns all that is kept, [B, h, S, D]."""
        if self.run is not None:
            self.keys[:, :, self.run], self.values[:, :, self.run] = keys, values
            return self.keys, self.values
        rows = torch.arange(len(self.slots), device=self.slots.device)[:, None]
        self.keys[rows, :, self.slots] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[rows, :, self.slots] = values.transpose(1, 2).to(self.values.dtype)
        return self.keys, self.values


@dataclass(frozen=True)
class KVCache:
    """`keys` and `values`, a tensor [B, h, S, D] a layer; `slots` [B, Q]: where those of the coming view go.

    Attention of the coming view is over the first K slots by the view's [B, Q, K] pattern, or, when it is CAUSAL, over the
    slots up to the query's own. Writing over a slot replaces it: a [MASK] looked at once is overwritten by its token.
    `run`: the slots, where the sampler says that every row has the same consecutive ones; the slots after them are then not
    even read. A call without a run looks at a cache of one size, whatever is in it yet: such calls can share a compiled graph.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    slots: Tensor
    run: slice | None = None

    @staticmethod
    def empty(shape: Shape, rows: int, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> KVCache:
        sizes = rows, shape.keys, size, shape.head
        store = [torch.zeros(sizes, device=device, dtype=dtype) for _ in range(2 * shape.depth)]
        if accelerated(device):
            for (
                part
            ) in store:  # its address is part of a CUDA graph, as a weight's is, so it can be written to inside one
                torch._dynamo.mark_static_address(part)
        slots = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        return KVCache(tuple(store[: shape.depth]), tuple(store[shape.depth :]), slots)

    @property
    def size(self) -> int:
        return self.keys[0].shape[2]

    def at(self, slots: Tensor, run: slice | None = None) -> KVCache:
        return replace(self, slots=slots, run=run)

    def causal(self) -> Tensor:
        return torch.arange(self.size, device=self.slots.device) <= self.slots[:, :, None]

    def layer(self, number: int) -> LayerCache:
        return LayerCache(self.keys[number], self.values[number], self.slots, self.run)

    def pattern(self) -> Attention | Tensor:
        """The causal pattern over all slots, or up to the end of a run: then the last query sees them all."""
        if self.run is None:
            return self.causal()
        if self.run.stop - self.run.start == 1:
            return Attention.FULL
        return Attention.CAUSAL if self.run.start == 0 else self.causal()[:, :, : self.run.stop]


class Pool:
    """Caches of texts that come and go: keys and values [R, h, S + 1, D] a layer, a row a text, of which the first rows are in
    use, so that a call for all of them copies nothing. A row that ends is filled by the last one; R and S grow by doubling.
    The last slot is for padding, which nobody looks at. Not paged attention: a row has all its slots at once."""

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
        grown = [self._empty(rows, slots) for _ in self.store]  # all or none: there may be no memory for it
        for new, old in zip(grown, self.store, strict=True):
            new[: len(old), :, : old.shape[2] - 1] = old[:, :, :-1]
        self.store = grown

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
