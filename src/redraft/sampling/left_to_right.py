"""Left to right, one token at a time, with a KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.ar import AR
from redraft.families.base import Family
from redraft.noise import draws
from redraft.noise.draws import Key
from redraft.sampling.base import Denoiser, Sampler, sample_index
from redraft.types import Attention, Cache, Canvas, View


@dataclass(frozen=True)
class LeftToRight(Sampler):
    """Each token is drawn given all before it. The fixed tokens of a row must stand at its beginning."""

    def refusal(self, family: Family) -> str | None:
        return None if isinstance(family, AR) else "it does not predict the next token"

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        family = denoiser.family
        assert isinstance(family, AR)
        if (canvas.fixed[:, 1:] & ~canvas.fixed[:, :-1]).any():
            raise UserError("family 'ar' cannot fill in before a fixed token; mdlm, duo and esolm can")
        rows, length = canvas.tokens.shape
        given = int(canvas.fixed.sum(1).min())
        noise = draws.field(key, sample_index(canvas), length)("token")
        cache = denoiser.network.cache(rows, length)
        start = 0
        if canvas.fixed.all():
            yield canvas
        for place in range(given, length):
            seen = family.shifted(canvas.tokens)[:, start : place + 1]
            hidden = denoiser.trunk(_next(seen, start, cache))
            new = canvas.tokens.clone()
            new[:, place] = denoiser.draw(hidden[:, -1], noise[:, place])
            canvas, start = canvas.write(new), place + 1
            yield canvas


def _next(seen: Tensor, start: int, cache: Cache) -> View:
    """The tokens not yet cached, [B, Q], of which the last one's successor is asked for."""
    run = slice(start, start + seen.shape[1])
    places = torch.arange(run.start, run.stop, device=seen.device)
    return View(seen, places[None], Attention.CAUSAL, cache=cache.at(places.expand(len(seen), -1), run))
