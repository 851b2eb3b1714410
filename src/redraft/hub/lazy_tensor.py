"""Lazy tensors: offset, shape and dtype of a tensor in a file, of which a few rows are read at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from redraft.errors import UserError

CHUNK = 1 << 24  # bytes alive at once
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Packed:
    """How rows of a quantised tensor are stored: so many bytes each, and what makes numbers [n, width] of n rows' bytes."""

    row: int
    unpack: Callable[[bytes, int], Tensor]


@dataclass(frozen=True)
class LazyTensor:
    """`shape` with `strides` (in elements) of `dtype`, from byte `offset` of a file on; little-endian.

    `packed`: it is quantised, and `dtype` what it becomes. `head`: rows of each head of so many are stored as pairs of
    neighbours, as GGUF has them for RoPE, and are given as two halves.
    """

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    packed: Packed | None = None
    head: int = 0

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop of the first dimension; a number is one row."""
        if not self.head:
            return self._stored(start, stop)
        first, last = start // self.head * self.head, -(-stop // self.head) * self.head
        halves = self._stored(first, last).unflatten(0, (-1, self.head // 2, 2)).transpose(1, 2).flatten(0, 2)
        return halves[start - first : stop - first]

    def _stored(self, start: int, stop: int) -> Tensor:
        if self.packed is not None:
            data = self._bytes(self.offset + start * self.packed.row, (stop - start) * self.packed.row)
            return self.packed.unpack(bytes(data), stop - start).view(stop - start, *self.shape[1:])
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        first = start * self.strides[0] if self.shape else 0
        count = span(shape, self.strides)
        data = self._bytes(self.offset + first * self.dtype.itemsize, count * self.dtype.itemsize)
        if not data:
            return torch.empty(shape, dtype=self.dtype)
        return torch.frombuffer(data, dtype=self.dtype).as_strided(shape, self.strides)

    def _bytes(self, offset: int, count: int) -> bytearray:
        with self.path.open("rb") as file:
            file.seek(offset)
            data = bytearray(count)
            if file.readinto(data) != len(data):
                raise UserError(f"{self.path} ends before its tensors do: it was not copied whole")
        return data

    @property
    def turned(self) -> LazyTensor:
        """A matrix as its transpose."""
        return replace(self, shape=self.shape[::-1], strides=self.strides[::-1])

    def whole(self) -> Tensor:
        return self.rows(0, self.shape[0] if self.shape else 1)


def contiguous(path: Path, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor(path, offset, dtype, shape, tuple(prod(shape[i + 1 :]) for i in range(len(shape))))


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a strided tensor, both included."""
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if 0 not in shape else 0


@dataclass(frozen=True)
class Piece:
    """Rows start .. stop of a stored tensor, or of one that was made, times `scale`."""

    source: LazyTensor | Tensor
    start: int
    stop: int
    scale: float = 1.0

    def read(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """A few rows at a time, contiguous."""
        width = prod(self.source.shape[1:]) * max(dtype.itemsize, self.source.dtype.itemsize)
        step = max(1, CHUNK // max(1, width))
        for first in range(self.start, self.stop, step):
            last = min(self.stop, first + step)
            stored = isinstance(self.source, LazyTensor)
            rows = self.source.rows(first, last) if stored else self.source[first:last]  # type: ignore[union-attr, index]
            if self.scale != 1.0:
                rows = rows.to(torch.float32) * self.scale
            yield rows.to(dtype).contiguous()


@dataclass(frozen=True)
class Target:
    """A tensor of ours as pieces one under another. `origin` names what it is made of, for messages."""

    pieces: tuple[Piece, ...]
    dtype: torch.dtype
    origin: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(p.stop - p.start for p in self.pieces), *self.pieces[0].source.shape[1:])

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> Iterator[Tensor]:
        for piece in self.pieces:
            for rows in piece.read(self.dtype):
                if not bool(torch.isfinite(rows).all()):
                    raise UserError(f"{self.origin} holds numbers that are not finite: the checkpoint is damaged")
                yield rows


def stacked(*pieces: Piece, origin: str) -> Target:
    """What is stored in half precision stays so; what was multiplied, or mixes precisions, becomes float32."""
    kinds = {piece.source.dtype for piece in pieces}
    exact = len(kinds) == 1 and all(piece.scale == 1.0 for piece in pieces)
    only = kinds.pop() if exact else torch.float32
    return Target(pieces, torch.float32 if only == torch.float64 else only, origin)


def all_of(source: LazyTensor | Tensor, scale: float = 1.0, rows: int | None = None) -> Piece:
    """The whole tensor, or its first `rows`."""
    return Piece(source, 0, source.shape[0] if rows is None else rows, scale)
