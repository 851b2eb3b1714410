"""What a step reads, as a function of its number: rows of text, or examples of prompt and completion."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from redraft.config import DataConfig
from redraft.noise import draws
from redraft.noise.draws import Key
from redraft.text.examples import Shuffled
from redraft.text.packing import Blocks, Rows
from redraft.types import Batch


@dataclass(frozen=True)
class Reader:
    """Samples, `batch` a step. `blank`: the id that stands for each token of a dropped prompt, the spare one of every network:
    [MASK] to the masked families (arXiv:2410.18514)."""

    samples: Blocks | Shuffled
    data: DataConfig
    batch: int
    seed: int
    blank: int

    def step(self, step: int) -> Rows:
        """The rows of a step, consecutive sample numbers."""
        rows = self.samples.rows(step * self.batch + np.arange(self.batch, dtype=np.int64))
        if self.data.drop:
            rows = self.dropped(rows)
        return self.shortened(rows, step) if self.data.short else rows

    def dropped(self, rows: Rows) -> Rows:
        """Prompts blanked with probability `drop`, each for itself."""
        chance = draws.uniform(Key.of(self.seed).fold("prompt"), torch.from_numpy(rows.index)).numpy()
        blanked = (chance < self.data.drop)[:, None] & ~rows.scored
        if rows.lengths is not None:
            blanked &= np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
        return replace(rows, tokens=np.where(blanked, self.blank, rows.tokens))

    def shortened(self, rows: Rows, step: int) -> Rows:
        """With probability `short`, the first l tokens of the step's rows, l uniform in 1 .. L (SMDM's stochastic length)."""
        chance, length = draws.uniform(Key.of(self.seed).fold("short"), torch.tensor(step), torch.arange(2)).tolist()
        if chance >= self.data.short:
            return rows
        keep = 1 + int(length * rows.tokens.shape[1])
        return replace(rows, tokens=rows.tokens[:, :keep], scored=rows.scored[:, :keep])


def as_batch(rows: Rows, part: slice, device: str | torch.device) -> Batch:
    """Some of the rows on a device, with no more padding than the longest of them needs."""
    longest = rows.tokens.shape[1] if rows.lengths is None else int(rows.lengths[part].max())
    tokens, scored = (torch.from_numpy(np.ascontiguousarray(x[part, :longest])) for x in (rows.tokens, rows.scored))
    lengths = None if rows.lengths is None else torch.from_numpy(rows.lengths[part]).to(device)
    return Batch(tokens.to(device), scored.to(device), torch.from_numpy(rows.index[part]).to(device), lengths)
