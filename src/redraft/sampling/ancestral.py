"""Ancestral sampling: the reverse chain q(x_s | x_t, x_0 ~ p0) on a grid of times, for every family with a clock.

For absorbing families without time conditioning, the step at which a token is unmasked is independent of its value, so
it is drawn first. Each row then skips the steps in which none of its tokens is unmasked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from redraft.families.base import Absorbing, DiffusionFamily
from redraft.network.device import flat_places, sent
from redraft.noise.counter_rng import Key
from redraft.noise.kappa import even_times
from redraft.noise.schedules import Schedule
from redraft.sampling.base import ClockSampler, Denoiser, Step, calls, most, noise_of, unwritten, walk
from redraft.types import Canvas


@dataclass(frozen=True)
class Ancestral(ClockSampler):
    """`steps` equal steps from t = 1 to t = 0. A step in which no token moves does not call the network; a batch of masked
    texts is done in as many calls as the row with most such steps needs, and rows that are done are not in them."""

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        family = denoiser.family
        assert isinstance(family, DiffusionFamily)
        if isinstance(family, Absorbing) and not family.clocked:
            appear = showing_up(noise_of(canvas, key)("move"), family.schedule, even_times(self.steps))
            yield from reveal(denoiser, canvas, key, calls(appear.masked_fill(canvas.fixed.cpu(), -1)))
            return
        move = lambda step: family.step(step.predict, step.xt, step.t, step.target(), step.noise)
        yield from walk(denoiser, canvas, key, even_times(self.steps), move)


def showing_up(u: Tensor, schedule: Schedule, grid: Tensor) -> Tensor:
    """[B, L] uniforms -> the step of a falling `grid` of times [S + 1] in which each token shows up: i with probability
    alpha(grid[i + 1]) - alpha(grid[i])."""
    alpha = schedule(grid)[0].to(u.device)
    return torch.searchsorted(alpha[1:-1].contiguous(), u, right=True)


def reveal(denoiser: Denoiser, canvas: Canvas, key: Key, call: Tensor) -> Iterator[Canvas]:
    """Write each token at the `call` [B, L] that it is given, and none at -1, all of it known to the host. Rows with nothing
    to write do not take part, unless the network wants all its calls of one shape."""
    device, token = canvas.tokens.device, noise_of(canvas, key)("token").flatten()
    canvas = unwritten(denoiser.family, canvas, key)
    times = torch.ones(len(call), 1, dtype=torch.float64, device=device)  # any will do
    if not most(call):
        yield canvas
    for now in range(most(call)):
        where = call == now
        places = flat_places(where)
        u, there = sent(token[places], device), sent(places, device)
        some = where.any(1)
        if denoiser.static or some.all():
            drawn = denoiser(canvas.tokens, times).draw(there, u)
        else:
            rows, inside = sent(some.nonzero()[:, 0], device), sent(flat_places(where[some]), device)
            drawn = denoiser.only(rows)(canvas.tokens[rows], times[: len(rows)]).draw(inside, u)
        canvas = canvas.put(there, drawn)
        yield canvas


@dataclass(frozen=True)
class GreedyNoiseRemoval(ClockSampler):
    """Ancestral, but its last step takes the likeliest token at every free position (Duo's greedy tail: all of them;
    MDLM: those still hidden, as visible ones predict themselves). Cleaner texts, not draws from the model."""

    exact: ClassVar[bool] = False

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        family = denoiser.family
        assert isinstance(family, DiffusionFamily)

        def move(step: Step) -> Tensor:
            if step.number < self.steps - 1:
                return family.step(step.predict, step.xt, step.t, step.target(), step.noise)
            return _likeliest(family, step)

        yield from walk(denoiser, canvas, key, even_times(self.steps), move)


def _likeliest(family: DiffusionFamily, step: Step) -> Tensor:
    """[B, L] ids; a mask hides what it predicts, any other token may be wrong."""
    xt, places = step.xt, sent(flat_places(step.free), step.xt.device)
    if isinstance(family, Absorbing):
        places = flat_places(sent(step.free, xt.device) & (xt == family.mask_id))
    if not len(places):
        return xt
    return xt.flatten().index_copy(0, places, step.predict.best(places)).view_as(xt)
