"""First-hitting sampling: one hidden position a call (Zheng et al. 2024, arXiv:2409.02908, section 4).

As the steps of the ancestral chain grow without bound no two tokens appear at once, and each hidden one is as likely as
the next to be first. So its limit needs no steps: a uniformly random order, one token of each row a call. The times at
which tokens appear are not drawn, as the network reads no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from redraft.families.base import Absorbing, Family
from redraft.noise import draws
from redraft.noise.draws import Key
from redraft.sampling.base import Denoiser, Sampler, mask_refusal, sample_index
from redraft.types import Canvas


@dataclass(frozen=True)
class FirstHitting(Sampler):
    """As many calls as the row with most to write has free tokens; every row has an order of its own."""

    def refusal(self, family: Family) -> str | None:
        return mask_refusal(family)

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        family, free = denoiser.family, ~canvas.fixed
        assert isinstance(family, Absorbing)
        noise = draws.field(key, sample_index(canvas), free.shape[1])
        canvas = canvas.write(family.prior(noise))
        order = noise("order").masked_fill(canvas.fixed, 1.0).argsort(1)
        any_time = torch.ones_like(free[:, :1], dtype=torch.float64)
        for now in range(int(free.sum(1).max())):
            where = torch.zeros_like(free).scatter(1, order[:, now : now + 1], True) & free
            drawn = draws.categorical(denoiser(canvas.tokens, any_time)(where), noise("token")[where])
            canvas = canvas.write(canvas.tokens.masked_scatter(where, drawn))
            yield canvas
