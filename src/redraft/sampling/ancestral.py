"""Ancestral sampling: the reverse chain q(x_s | x_t, x_0 ~ p0) on a grid of times, for every family with a clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from redraft.errors import UserError
from redraft.families.base import DiffusionFamily, Family
from redraft.noise import draws
from redraft.noise.draws import Key
from redraft.sampling.base import Denoiser, Sampler, sample_index
from redraft.types import Canvas


@dataclass(frozen=True)
class Ancestral(Sampler):
    """`steps` equal steps from t = 1 to t = 0. A step in which no token moves does not call the network."""

    steps: int = 64

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")

    def refusal(self, family: Family) -> str | None:
        return None if isinstance(family, DiffusionFamily) else "it has no clock"

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        family, index = denoiser.family, sample_index(canvas)
        assert isinstance(family, DiffusionFamily)
        length = canvas.tokens.shape[1]
        canvas = canvas.write(family.prior(draws.field(key, index, length)))
        grid = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64, device=index.device)
        for number, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
            noise = draws.field(key.fold("step", number), index, length)
            t, s = t.expand(len(index), 1), s.expand(len(index), 1)
            canvas = canvas.write(family.step(denoiser(canvas.tokens, t), canvas.tokens, t, s, noise))
            yield canvas
