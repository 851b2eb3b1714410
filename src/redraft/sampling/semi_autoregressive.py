"""Semi-autoregressive sampling: blocks from left to right, each by another sampler while later ones stay unwritten.

As in LLaDA (Nie et al. 2025, arXiv:2502.09992, section 2.4) and MDLM's semi-AR mode, with one model trained on whole texts:
the canvas has its final length. Not to be confused with block diffusion (BD3-LM, arXiv:2503.09573), a family of its own,
whose network never sees the blocks to come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch

from redraft.errors import UserError
from redraft.families.base import DiffusionFamily, Family
from redraft.noise.counter_rng import Key
from redraft.registry import SAMPLERS, find
from redraft.sampling.base import Denoiser, Sampler, check_steps, clock_refusal, unwritten
from redraft.types import Canvas


@dataclass(frozen=True)
class SemiAutoregressive(Sampler):
    """Blocks of `block` tokens, each by `inner`: a sampler with a clock, or the name of one. `steps` of an inner sampler
    that has any are shared by all blocks of the canvas; what falls to a block that is given is not spent.

    One block is the inner sampler, bit for bit. Exact for a masked family and an exact inner sampler; not for Duo, whose
    network is conditioned on one noise level, while finished, current and future blocks each have their own.
    """

    exact: ClassVar[bool] = False
    steps: int = 64
    block: int = 32
    inner: str | Sampler = "ancestral"

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if self.block < 1:
            raise UserError(f"block must be at least 1 token, got {self.block}")
        if isinstance(self._inner(), SemiAutoregressive):
            raise UserError("inner must be a sampler of one block, got 'semi_autoregressive'. Try: ancestral")

    @property
    def rewrites(self) -> bool:
        return self._inner().rewrites

    def refusal(self, family: Family) -> str | None:
        why = clock_refusal(family) or self._inner().refusal(family)
        return why and f"its inner sampler says that {why}" if isinstance(family, DiffusionFamily) else why

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        length = canvas.tokens.shape[1]
        given, places = canvas.fixed, torch.arange(length, device=canvas.tokens.device)
        canvas = unwritten(denoiser.family, canvas, key)
        if given.all():
            yield canvas
        for number, sampler in enumerate(self.samplers(length)):
            closed = given | (places // self.block != number)
            if not closed.all():
                for frame in sampler(denoiser, replace(canvas, fixed=closed), key):
                    canvas = replace(canvas, tokens=frame.tokens)
                    yield canvas

    def samplers(self, length: int) -> list[Sampler]:
        """The inner sampler of each block of a canvas, with its share of the steps: the first blocks take the remainder."""
        inner, blocks = self._inner(), -(-length // self.block)
        if "steps" not in {f.name for f in fields(inner)}:  # type: ignore[arg-type]
            return [inner] * blocks
        if self.steps < blocks:
            raise UserError(f"{self.steps} steps cannot be shared by {blocks} blocks: steps must be at least {blocks}")
        shares = [self.steps // blocks + (number < self.steps % blocks) for number in range(blocks)]
        return [replace(inner, steps=share) for share in shares]  # type: ignore[type-var]

    def _inner(self) -> Sampler:
        if isinstance(self.inner, Sampler):
            return self.inner
        made: Sampler = find("inner sampler", SAMPLERS, self.inner).load()()
        return made
