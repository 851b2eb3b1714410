"""Ancestral sampling: the reverse chain q(x_s | x_t, x_0 ~ p0) on a grid of times, for every family with a clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from redraft.families.base import Absorbing, DiffusionFamily, Family
from redraft.noise.draws import Key
from redraft.noise.kappa import even_times
from redraft.sampling.base import Denoiser, Sampler, Step, check_steps, clock_refusal, walk
from redraft.types import Canvas


@dataclass(frozen=True)
class Ancestral(Sampler):
    """`steps` equal steps from t = 1 to t = 0. A step in which no token moves does not call the network."""

    steps: int = 64

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def refusal(self, family: Family) -> str | None:
        return clock_refusal(family)

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        family = denoiser.family
        assert isinstance(family, DiffusionFamily)
        move = lambda step: family.step(step.predict, step.xt, step.t, step.target(), step.noise)
        yield from walk(denoiser, canvas, key, even_times(self.steps), move)


@dataclass(frozen=True)
class GreedyTail(Sampler):
    """Ancestral, but its last step takes the likeliest token at every free position (Duo's greedy tail: all of them;
    MDLM: those still hidden, as visible ones predict themselves). Cleaner texts, not draws from the model."""

    exact: ClassVar[bool] = False
    steps: int = 64

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def refusal(self, family: Family) -> str | None:
        return clock_refusal(family)

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
    where = step.free & (step.xt == family.mask_id) if isinstance(family, Absorbing) else step.free
    if not where.any():
        return step.xt
    return step.xt.masked_scatter(where, torch.argmax(step.predict(where), -1))
