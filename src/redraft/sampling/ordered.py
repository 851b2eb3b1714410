"""Eso-LM's sampler: several tokens a call in an order drawn beforehand, with a KV cache.

arXiv:2506.01928, section 4. When each token is written does not depend on the network, so the whole order is drawn
first. A call sees the tokens written by the call before (now clean, their keys and values kept) and the masks to write
now; every row advances at its own events, so no row depends on its neighbours. Variant A has no cache: a call sees all the
tokens written so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError, unknown
from redraft.families.base import Family
from redraft.families.esolm import EsoLM
from redraft.network.device import flat_places, sent
from redraft.noise.counter_rng import Key
from redraft.sampling.base import Denoiser, Sampler, check_steps, most, noise_of, unwritten
from redraft.types import Attention, Canvas, Noise, View

ORDERS = ("random", "block", "block_autoregressive")


@dataclass(frozen=True)
class Ordered(Sampler):
    """When each token is written, by `order` (the last two: arXiv:2602.15014, whose code calls them predictors):

    random: `steps` of diffusion for a share `alpha_0` of the tokens (None: as trained), then one call a token, left to
    right. block: contiguous blocks of `steps` tokens; call j writes one token of each block, at the same random offset.
    block_autoregressive: `super_blocks` equal parts from left to right, each cut into blocks of `steps` tokens, of which
    the first tokens are written one a call, then all second ones at once, all third ones, ...
    """

    steps: int = 64
    alpha_0: float | None = None
    order: str = "random"
    super_blocks: int = 1

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if self.order not in ORDERS:
            raise unknown("order", self.order, ORDERS)
        if self.order != "random" and self.alpha_0 is not None:
            raise UserError(f"alpha_0 belongs to order 'random': order {self.order!r} leaves no tokens to choose")
        if self.super_blocks < 1 or (self.super_blocks > 1 and self.order != "block_autoregressive"):
            raise UserError(
                f"super_blocks must be at least 1, and more than 1 only with order 'block_autoregressive': "
                f"got super_blocks={self.super_blocks} with order {self.order!r}"
            )
        if self.alpha_0 is not None and not 0 <= self.alpha_0 <= 1:
            raise UserError(f"alpha_0 must be in [0, 1], got {self.alpha_0}")

    def refusal(self, family: Family) -> str | None:
        return None if isinstance(family, EsoLM) else "it is not causal in an order of generation"

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        family = denoiser.family
        assert isinstance(family, EsoLM)
        (rows, length), device = canvas.tokens.shape, canvas.tokens.device
        noise, fixed = noise_of(canvas, key), canvas.fixed.cpu()
        canvas, token = unwritten(family, canvas, key), noise("token")
        # All of the schedule is the host's: no call waits for the device.
        order, event, diffused = self.schedule(fixed, family.alpha_0 if self.alpha_0 is None else self.alpha_0, noise)
        if not most(event):
            yield canvas
        # One slot more than tokens, for the padding of short rows.
        cache = denoiser.network.cache(rows, length + 1) if family.variant == "B" else None
        width = widest(event) if denoiser.static else 0
        for now in range(most(event)):
            static = denoiser.static and (now > 0 or not fixed.any())  # a prompt is read in a call of its own shape
            rank, writing = window(event, now, width * static) if cache else so_far(event, now)
            place, among = order.gather(1, rank.clamp(max=length - 1)), flat_places(writing)
            targets = (place + length * torch.arange(rows)[:, None]).flatten()[among]
            u = sent(token.gather(1, place).flatten()[among], device)
            written = sent((event < now).sum(1).minimum(diffused), device)
            keys = int(rank.max()) + 1
            place, rank, among, targets = (sent(part, device) for part in (place, rank, among, targets))
            seen = canvas.tokens.gather(1, place)
            if cache:
                cached = cache.at(rank)
                pattern = Attention.CAUSAL if static else cached.causal()[..., :keys]
                view = View(seen, place, pattern, cache=cached, static=static)
            else:
                view = family.view(seen, place, written)
            hidden = denoiser.trunk(view).flatten(0, 1)
            canvas = canvas.put(targets, denoiser.draw(hidden[among], u))
            yield canvas

    def schedule(self, fixed: Tensor, alpha_0: float, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
        """The order of generation [B, L], the call [B, L] (in that order) at which each token is written, and how many
        tokens [B] are there when diffusion ends (in block orders it writes all).

        Fixed tokens come first, at call -1. Steps that write nothing are no calls.
        """
        length = fixed.shape[1]
        if self.order == "random":
            step = diffused(noise("when"), alpha_0, self.steps)
        elif self.order == "block":
            step = same_offset(noise("offset"), self.steps)
        else:
            step = first_tokens_first(length, self.steps, self.super_blocks).to(fixed.device)
        step = step.masked_fill(fixed, -1)
        diffused_ones = (step < self.steps).sum(1) if self.order == "random" else torch.full_like(step[:, 0], length)
        order = (step + noise("order")).argsort(1)
        step = step.gather(1, order)
        fresh = torch.cat([step[:, :1] >= 0, step[:, 1:] != step[:, :-1]], 1)
        return order, fresh.cumsum(1) - 1, diffused_ones


def diffused(u: Tensor, alpha_0: float, steps: int) -> Tensor:
    """[B, L] uniforms -> [B, L] steps: with probability alpha_0 any of `steps`, else one step a token, left to right."""
    by_diffusion = (u / max(alpha_0, 1e-300) * steps).long().clamp(max=steps - 1)
    return torch.where(u < alpha_0, by_diffusion, steps + torch.arange(u.shape[1], device=u.device))


def same_offset(u: Tensor, steps: int) -> Tensor:
    """[B, L] uniforms -> [B, L] steps: those of a random order of the offsets in a block, one order a row."""
    turn = u[:, :steps].argsort(1).argsort(1)
    offset = torch.arange(u.shape[1], device=u.device) % steps
    return turn.gather(1, offset.expand_as(u))


def first_tokens_first(length: int, steps: int, super_blocks: int) -> Tensor:
    """[1, L] steps: `super_blocks` times, P first tokens one by one and then P tokens at each further offset, where P
    blocks of `steps` tokens make a super-block. What does not divide leaves the last ones short."""
    place, width = torch.arange(length)[None], -(-length // super_blocks)
    blocks = -(-width // steps)
    block, offset = place % width // steps, place % width % steps
    return place // width * (blocks + steps - 1) + torch.where(offset == 0, block, blocks - 1 + offset)


def so_far(event: Tensor, now: int) -> tuple[Tensor, Tensor]:
    """As `window`, from the first token on: what a network without a cache looks at. Tokens to come are seen by nobody."""
    width = int((event <= now).sum(1).max())
    return torch.arange(width, device=event.device).expand(len(event), -1), event[:, :width] == now


def window(event: Tensor, now: int, width: int = 0) -> tuple[Tensor, Tensor]:
    """Ranks [B, Q] that call `now` looks at (written by the call before, or to be written now), and which it writes.

    They are consecutive in a row; shorter rows are padded with the rank after the last of any row: its slot is seen by none
    until a token is written there. With a `width` all calls have Q = `width`, padded with rank L, which is no token's.
    """
    length = event.shape[1]
    first, last = ((event < at).sum(1, keepdim=True) for at in (now - 1, now + 1))
    rank = first + torch.arange(width or int((last - first).max()), device=event.device)
    inside = rank < last
    writing = inside & (event.gather(1, rank.clamp(max=length - 1)) == now)
    return rank.where(inside, length if width else last.max()), writing


def widest(event: Tensor) -> int:
    """The most tokens that a call looks at, those of two calls in a row, the fixed ones apart."""
    share = torch.stack([(event == now).sum(1) for now in range(most(event))] or [event[:, 0]])
    return int(torch.cat([share[:1], share[1:] + share[:-1]]).max())
