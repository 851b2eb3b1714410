"""First-hitting sampling: one hidden position a call (Zheng et al. 2024, arXiv:2409.02908, section 4).

As the steps of the ancestral chain grow without bound no two tokens appear at once, and each hidden one is as likely as
the next to be first. So its limit needs no steps: a uniformly random order, one token of each row a call. The times at
which tokens appear are not drawn, as the network reads no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from redraft.families.base import Family
from redraft.noise.counter_rng import Key
from redraft.sampling.ancestral import reveal
from redraft.sampling.base import Denoiser, Sampler, calls, mask_refusal, noise_of
from redraft.types import Canvas


@dataclass(frozen=True)
class FirstHitting(Sampler):
    """As many calls as the row with most to write has free tokens; every row has an order of its own, and leaves when done."""

    def refusal(self, family: Family) -> str | None:
        return mask_refusal(family)

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        u = noise_of(canvas, key)("order")
        yield from reveal(denoiser, canvas, key, calls(u.masked_fill(canvas.fixed.cpu(), -1)))
