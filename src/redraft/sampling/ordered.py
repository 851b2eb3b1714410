"""Eso-LM's sampler: several tokens a call in a random order, then one a call left to right, with a KV cache.

arXiv:2506.01928, section 4. When each token is written does not depend on the network, so the whole order is drawn
first. A call sees the tokens written by the call before (now clean, their keys and values kept) and the masks to write
now; every row advances at its own events, so no row depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import Family
from redraft.families.esolm import EsoLM
from redraft.noise import draws
from redraft.noise.draws import Key
from redraft.sampling.base import Denoiser, Sampler, sample_index
from redraft.types import Canvas, Noise, View


@dataclass(frozen=True)
class Ordered(Sampler):
    """`steps` of diffusion for a share `alpha_0` of the tokens (None: as trained), then one call a token."""

    steps: int = 64
    alpha_0: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")
        if self.alpha_0 is not None and not 0 <= self.alpha_0 <= 1:
            raise UserError(f"alpha_0 must be in [0, 1], got {self.alpha_0}")

    def refusal(self, family: Family) -> str | None:
        return None if isinstance(family, EsoLM) else "it is not causal in an order of generation"

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        family = denoiser.family
        assert isinstance(family, EsoLM)
        rows, length = canvas.tokens.shape
        noise = draws.field(key, sample_index(canvas), length)
        canvas = canvas.write(family.prior(noise))
        order, event = self.schedule(canvas.fixed, family.alpha_0 if self.alpha_0 is None else self.alpha_0, noise)
        # One slot more than tokens: where the padding of short rows goes, seen by nobody real.
        cache = denoiser.network.cache(rows, length + 1)
        for now in range(int(event.max()) + 1):
            rank, writing = window(event, now)
            place = order.gather(1, rank.clamp(max=length - 1))
            cached = cache.at(rank)
            hidden = denoiser.trunk(View(canvas.tokens.gather(1, place), place, cached.causal(), cache=cached))
            drawn = draws.categorical(denoiser.log_p(hidden[writing]), noise("token").gather(1, place)[writing])
            new = canvas.tokens.clone()
            new[writing.nonzero()[:, 0], place[writing]] = drawn
            canvas = canvas.write(new)
            yield canvas

    def schedule(self, fixed: Tensor, alpha_0: float, noise: Noise) -> tuple[Tensor, Tensor]:
        """The order of generation [B, L], and the call [B, L] (in that order) at which each token is written.

        Fixed tokens come first, at call -1. A token is written by diffusion with probability alpha_0, at a step drawn
        uniformly; steps that write nothing are no calls.
        """
        length, u = fixed.shape[1], noise("when")
        step = torch.where(
            u < alpha_0, (u / max(alpha_0, 1e-300) * self.steps).long().clamp(max=self.steps - 1), self.steps
        )
        left_to_right = step + torch.arange(length, device=fixed.device)
        step = torch.where(step == self.steps, left_to_right, step).masked_fill(fixed, -1)
        order = (step + noise("order")).argsort(1)
        step = step.gather(1, order)
        fresh = torch.cat([step[:, :1] >= 0, step[:, 1:] != step[:, :-1]], 1)
        return order, fresh.cumsum(1) - 1


def window(event: Tensor, now: int) -> tuple[Tensor, Tensor]:
    """Ranks [B, Q] that call `now` looks at (written by the call before, or to be written now), and which it writes.

    They are consecutive in a row; shorter rows are padded with rank L.
    """
    length = event.shape[1]
    first, last = ((event < at).sum(1, keepdim=True) for at in (now - 1, now + 1))
    rank = first + torch.arange(int((last - first).max()), device=event.device)
    inside = rank < last
    writing = inside & (event.gather(1, rank.clamp(max=length - 1)) == now)
    return rank.masked_fill(~inside, length), writing
