"""BD3-LM's sampler: blocks from left to right with a KV cache, a text of any length.  arXiv:2503.09573, algorithm 2.

The step at which a token is unmasked does not depend on the network, so it is drawn first, for each row; steps that unmask
nothing make no call. A finished block is read once more, without masks, to cache its keys and values. That is
folded into the first call of the next block, so it costs no call of its own, and neither does a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import Family
from redraft.families.bd3lm import BD3LM, by_block
from redraft.network.device import sent
from redraft.noise.counter_rng import Key
from redraft.sampling.base import Denoiser, Sampler, calls, noise_of, unwritten
from redraft.types import Cache, Canvas, View


@dataclass(frozen=True)
class BlockDiffusion(Sampler):
    """`steps` of the reverse chain for each block, in at most as many calls as the block has tokens to write; 0: its
    limit, one token a call in a random order (first-hitting, arXiv:2409.02908), exact at once.

    `context`: how many tokens before its block a token looks at; 0: all. The cache is then a ring of slots: it grows with
    what is given at once, and not with what is written.
    """

    steps: int = 64
    context: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UserError(f"steps must be at least 1 a block, or 0 for one token a call: got {self.steps}")
        if self.context < 0:
            raise UserError(f"context must be a number of tokens, or 0 for all: got {self.context}")

    def refusal(self, family: Family) -> str | None:
        return None if isinstance(family, BD3LM) else "its network does not write block after block"

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        family = denoiser.family
        assert isinstance(family, BD3LM)
        (rows, length), device = canvas.tokens.shape, canvas.tokens.device
        noise = noise_of(canvas, key)
        canvas, token = unwritten(family, canvas, key), noise("token").flatten()
        # All of the schedule is the host's: no call waits for the device.
        event = events(noise("when"), ~canvas.fixed.cpu(), family.block, self.steps)
        todo = spans(event, family.block)
        if not todo:
            yield canvas
        wide = 2 * family.block if denoiser.static else 0
        ring = Ring.of(denoiser, rows, length, self.context or length, wide, todo)
        for unread, start, stop in todo:
            if wide and unread < start - family.block:  # a prompt is read in a call of its own shape
                denoiser.trunk(ring.view(canvas.tokens[:, unread:start], start, family.block))
            for now in range(int(event[:, start:stop].max()) + 1):
                first = stop - wide if wide else start if now else unread
                row, place = (event[:, start:stop] == now).nonzero().unbind(1)
                targets = row * length + start + place
                among = sent(row * (stop - first) + start - first + place, device)
                u, targets = sent(token[targets], device), sent(targets, device)
                seen = canvas.tokens[:, max(first, 0) : stop]
                hidden = denoiser.trunk(ring.view(seen, stop, family.block, wide)).flatten(0, 1)
                canvas = canvas.put(targets, denoiser.draw(hidden[among], u))
                yield canvas


def events(u: Tensor, free: Tensor, block: int, steps: int) -> Tensor:
    """[B, L] uniforms -> the call of its block at which each free token is written, -1 elsewhere.

    A token moves in each of `steps` with equal chance, or in one of its own where `steps` is 0. A step in which a row writes
    nothing is no call of that row's.
    """
    step = ((u * steps).floor() if steps else u).masked_fill(~free, -1)
    return calls(by_block(step, block, -1)).flatten(1)[:, : u.shape[1]]


def spans(event: Tensor, block: int) -> list[tuple[int, int, int]]:
    """(unread, start, stop) of each block with something to write; tokens from `unread` to `start` are finished, but the
    network has not read their final tokens. Blocks that are given in every row are left out."""
    length, out = event.shape[1], []
    unread = 0
    for start in range(0, length, block):
        stop = min(start + block, length)
        if (event[:, start:stop] >= 0).any():
            out.append((unread, start, stop))
            unread = start
    return out


@dataclass(frozen=True)
class Ring:
    """A cache of the last tokens of a text: the one at place p is kept in slot p mod `size`, where `size` is at least the
    `window` that a token looks back at and what a call reads, so no slot that is looked at has been written over. Static
    calls have one slot more, for padding, which nobody else looks at."""

    cache: Cache
    size: int
    window: int

    @staticmethod
    def of(
        denoiser: Denoiser, rows: int, length: int, window: int, wide: int, todo: list[tuple[int, int, int]]
    ) -> Ring:
        """For calls over the spans `todo`, and of `wide` tokens, two blocks, which may begin inside a third."""
        reads = max([wide + wide // 2, *(stop - unread for unread, _, stop in todo)])
        size = min(length, window + reads)
        return Ring(denoiser.network.cache(rows, size + (wide > 0)), size, window)

    def view(self, tokens: Tensor, stop: int, block: int, wide: int = 0) -> View:
        """`tokens` [B, Q], the ones up to place `stop` of the text: each looks at its own block and `window` tokens before it.
        With `wide`, Q is that, and what there is not before the text is padding. The pattern is the host's."""
        missing, device = max(0, wide - tokens.shape[1]), tokens.device
        place = torch.arange(stop - tokens.shape[1] - missing, stop)
        slot = torch.arange(self.size)
        # The place of what each slot holds after this call; below 0: nothing.
        held = stop - 1 - (stop - 1 - slot) % self.size
        opens = (place // block * block)[:, None]
        pattern = (held >= (opens - self.window).clamp(min=0)) & (held < opens + block)
        if wide:
            pattern = torch.cat([pattern & (place >= 0)[:, None], (place < 0)[:, None]], 1)
        slots = torch.where(place < 0, self.size, place % self.size)
        tokens = torch.nn.functional.pad(tokens, (missing, 0))
        place, slots, pattern = (sent(part, device) for part in (place.clamp(min=0), slots, pattern))
        cache = self.cache.at(slots.expand(len(tokens), -1))
        return View(tokens, place[None], pattern[None], cache=cache, static=wide > 0)
