"""The data loader: the rows of a step as a function of its number, and each rank's share of them."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from redraft.config import DataConfig
from redraft.network.device import few_shapes, sent
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.text.examples.examples import Shuffled
from redraft.text.shards.mixture import Mixed
from redraft.text.shards.packing import Blocks, Rows, given_first
from redraft.types import Batch


@dataclass(frozen=True)
class Reader:
    """Samples, `batch` a step. `blank`: the id that stands for each token of a dropped prompt, the spare one of every network:
    [MASK] to the masked families (arXiv:2410.18514)."""

    samples: Blocks | Mixed | Shuffled
    data: DataConfig
    batch: int
    seed: int
    blank: int
    begins: bool = True  # `Family.begins`: else first tokens are not scored

    def step(self, step: int, places: NDArray[np.int64] | None = None) -> Rows:
        """The rows of a step, consecutive sample numbers; or those at `places` 0 .. batch - 1 of it alone."""
        places = np.arange(self.batch, dtype=np.int64) if places is None else places
        rows = self.samples.rows(step * self.batch + places)
        rows = rows if self.begins else given_first(rows)
        if self.data.cfg_dropout:
            rows = self.dropped(rows)
        return self.shortened(rows, step) if self.data.random_length else rows

    def dropped(self, rows: Rows) -> Rows:
        """Each prompt is blanked with probability `data.cfg_dropout`, independently."""
        chance = counter_rng.uniform(Key.of(self.seed).fold_in("prompt"), torch.from_numpy(rows.index)).numpy()
        blanked = (chance < self.data.cfg_dropout)[:, None] & ~rows.scored
        if rows.lengths is not None:
            blanked &= np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
        return replace(rows, tokens=np.where(blanked, self.blank, rows.tokens))

    def shortened(self, rows: Rows, step: int) -> Rows:
        """With probability `random_length`, the first l tokens of the rows, l uniform in 1 .. L (SMDM's stochastic length)."""
        chance, length = counter_rng.uniform(
            Key.of(self.seed).fold_in("short"), torch.tensor(step), torch.arange(2)
        ).tolist()
        if chance >= self.data.random_length:
            return rows
        keep = 1 + int(length * rows.tokens.shape[1])
        documents = None if rows.documents is None else rows.documents[:, :keep]
        return replace(rows, tokens=rows.tokens[:, :keep], scored=rows.scored[:, :keep], documents=documents)


@dataclass(frozen=True)
class Part:
    """A rank's share of one micro-batch: `places` in the step's batch, of which the first `paid` count."""

    places: NDArray[np.int64]
    paid: int


def parts(batch: int, accumulate: int, rank: int, size: int) -> list[Part]:
    """What a rank reads of a step: one part a micro-batch; over ranks and micro-batches every row is paid for once.

    Where ranks share a network in shards, all of them must run it equally often. So no part is empty, and none holds a
    single row where there are two: a family may send even and odd samples through it apart (Eso-LM). Rows that were added
    for that are read and not paid for.
    """
    found = []
    for number in range(accumulate):
        start, end = ((number * size + rank + i) * batch // (accumulate * size) for i in (0, 1))
        own = list(range(start, end))
        if size > 1 and len(own) < min(2, batch):
            at = min(start, batch - 1)
            near = [place for place in (at, at + 1, at - 1) if place not in own and 0 <= place < batch]
            own += near[: min(2, batch) - len(own)]
        found.append(Part(np.array(own, np.int64), end - start))
    return found


class Loader:
    """A rank's rows, step by step, the next step's read while this one trains. `seconds`: spent reading."""

    def __init__(self, reader: Reader, shares: list[Part]):
        self.reader, self.shares = reader, shares
        self.places = np.concatenate([part.places for part in shares])
        self.thread = ThreadPoolExecutor(1)
        self.coming: tuple[int, Future[Rows]] | None = None
        self.seconds = 0.0

    def take(self, step: int) -> Rows:
        """The rows of every part, one after another. Raises what reading raises."""
        coming, self.coming = self.coming, None
        ready = coming[1] if coming and coming[0] == step else self.thread.submit(self._read, step)
        rows = ready.result()
        self.coming = step + 1, self.thread.submit(self._read, step + 1)
        return rows

    def _read(self, step: int) -> Rows:
        began = time.perf_counter()
        rows = self.reader.step(step, self.places)
        self.seconds += time.perf_counter() - began
        return rows

    def scored(self, rows: Rows) -> int:
        """Tokens that are paid for in the rows that are."""
        return sum(
            int(rows.scored[at : at + part.paid].sum()) for at, part in zip(self.starts(), self.shares, strict=True)
        )

    def starts(self) -> list[int]:
        """Where each part begins."""
        return np.cumsum([0, *(len(part.places) for part in self.shares)])[:-1].tolist()


def as_batch(
    rows: Rows, part: slice, device: str | torch.device, *, paid: int | None = None, most: int | None = None
) -> Batch:
    """Some of the rows on a device, with no more padding than the longest of them needs; rows are of at most `most` tokens,
    and where the device compiles for each length there are few lengths. Of these rows the first `paid` are paid for, or all.
    Where the scored tokens are is found here, so that no device has to be asked."""
    longest = rows.tokens.shape[1] if rows.lengths is None else int(rows.lengths[part].max())
    width = few_shapes(longest, most or longest, torch.device(device))
    cut = lambda array: array[part, :longest] if width == longest else _padded(array[part, :longest], width)
    scored = cut(rows.scored).copy()
    scored[len(scored) if paid is None else paid :] = False
    places = torch.arange(scored.size, device=device) if scored.all() else _sent(np.flatnonzero(scored), device)
    lengths = rows.lengths[part] if rows.lengths is not None else np.full(len(scored), longest)
    padded = None if rows.lengths is None and width == longest else _sent(lengths, device)
    documents = None if rows.documents is None else _sent(cut(rows.documents), device).long()
    tokens, index = _sent(cut(rows.tokens), device), _sent(rows.index[part], device)
    return Batch(tokens, _sent(scored, device), index, padded, documents, places)


def _padded(array: NDArray[Any], width: int) -> NDArray[Any]:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])))


def _sent(array: NDArray[Any], device: str | torch.device) -> torch.Tensor:
    return sent(torch.from_numpy(np.ascontiguousarray(array)), device)
