"""BD3-LM's sampler: blocks from left to right with a KV cache, a text of any length.  arXiv:2503.09573, algorithm 2.

When each token is written does not depend on the network, so it is drawn first, and steps that move nothing are no calls;
each row has its own. A block whose last token was just written is read once more, clean, for its keys and values; that is
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
from redraft.noise import draws
from redraft.noise.draws import Key
from redraft.sampling.base import Denoiser, Sampler, calls, sample_index
from redraft.types import Cache, Canvas, View


@dataclass(frozen=True)
class Blocks(Sampler):
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
        rows, length = canvas.tokens.shape
        noise = draws.field(key, sample_index(canvas), length)
        canvas = canvas.write(family.prior(noise))
        if canvas.fixed.all():
            yield canvas
        event = events(noise("when"), ~canvas.fixed, family.block, self.steps)
        todo = spans(event, family.block)
        window = self.context or length
        size = min(length, window + max((stop - unread for unread, _, stop in todo), default=0))
        cache = denoiser.network.cache(rows, size)
        for unread, start, stop in todo:
            for now in range(int(event[:, start:stop].max()) + 1):
                writing = event[:, start:stop] == now
                seen = canvas.tokens[:, (start if now else unread) : stop]
                hidden = denoiser.trunk(cached_view(seen, stop, family.block, window, cache, size))
                drawn = denoiser.draw(hidden[:, start - stop :][writing], noise("token")[:, start:stop][writing])
                new = canvas.tokens.clone()
                new[:, start:stop][writing] = drawn
                canvas = canvas.write(new)
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
    network has not seen them so. Blocks that are given in every row are not among them."""
    length, out = event.shape[1], []
    unread = 0
    for start in range(0, length, block):
        stop = min(start + block, length)
        if (event[:, start:stop] >= 0).any():
            out.append((unread, start, stop))
            unread = start
    return out


def cached_view(tokens: Tensor, stop: int, block: int, window: int, cache: Cache, size: int) -> View:
    """`tokens` [B, Q], the ones up to place `stop` of the text: each looks at its own block and `window` tokens before it.

    The token at place p is kept in slot p mod `size`, where `size` is at least the window and Q, so no slot that is
    looked at has been written over.
    """
    place = torch.arange(stop - tokens.shape[1], stop, device=tokens.device)
    slot = torch.arange(size, device=tokens.device)
    held = stop - 1 - (stop - 1 - slot) % size  # the place of what each slot holds after this call; below 0: nothing
    opens = (place // block * block)[:, None]
    pattern = (held >= (opens - window).clamp(min=0)) & (held < opens + block)
    return View(tokens, place[None], pattern[None], cache=cache.at((place % size).expand(len(tokens), -1)))
