"""Left to right, one token at a time, with a KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.ar import AR
from redraft.families.base import Family
from redraft.network.device import sent
from redraft.noise.counter_rng import Key
from redraft.sampling.base import Denoiser, Sampler, noise_of
from redraft.types import Attention, Cache, Canvas, View


@dataclass(frozen=True)
class LeftToRight(Sampler):
    """Each token is drawn given all before it. The fixed tokens of a row must stand at its beginning."""

    def refusal(self, family: Family) -> str | None:
        return None if isinstance(family, AR) else "it does not predict the next token"

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        family, fixed = denoiser.family, canvas.fixed.cpu()
        assert isinstance(family, AR)
        if (fixed[:, 1:] & ~fixed[:, :-1]).any():
            raise UserError("family 'ar' cannot fill in before a fixed token; mdlm, duo and esolm can")
        rows, length = canvas.tokens.shape
        given, lead = int(fixed.sum(1).min()), int(family.begins)
        if not given and not lead:
            raise UserError(
                "this model reads nothing before a text (family.bos none), so it cannot begin one: give a prompt"
            )
        noise = sent(noise_of(canvas, key)("token"), canvas.tokens.device)
        canvas = canvas.write(torch.full_like(canvas.tokens, family.vocab))  # its prior, which says: not written yet
        cache, text = denoiser.network.cache(rows, length), family.shifted(canvas.tokens)
        places, start = torch.arange(length, device=text.device).expand(rows, -1), 0
        if given == length:
            yield canvas
        for place in range(given, length):
            end = place + lead  # before it stands what is seen: a text may be preceded by one more
            static = denoiser.static and end == start + 1
            view = _next(text[:, start:end], places[:, start:end], cache, start, static)
            drawn = denoiser.draw(denoiser.trunk(view)[:, -1], noise[:, place])
            if fixed[:, place].any():
                drawn = text[:, end].where(canvas.fixed[:, place], drawn)
            text = torch.cat([text[:, :end], drawn[:, None], text[:, end + 1 :]], 1)
            start = end
            yield replace(canvas, tokens=text[:, lead:])


def _next(seen: Tensor, places: Tensor, cache: Cache, start: int, static: bool) -> View:
    """The tokens [B, Q] not yet cached, from `start` on, of which the last one's successor is asked for. `static`: one of
    them, looking at a cache of full size; else the cache is read as far as it is written."""
    run = None if static else slice(start, start + seen.shape[1])
    return View(seen, places[:1], Attention.CAUSAL, cache=cache.at(places, run), static=static)
