"""A race: models write the same prompts at chosen numbers of steps, timed one text alone and in batches.

Sample i continues prompt i modulo their number, on a canvas of one length for all; a text is the same alone and in a batch
(but for rounding). Times are of sampling alone, the model loaded and warm. Tokens are those written on the canvas, the end
of a document and what stands after it included: prompts are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.evaluation.compute import wait
from redraft.hub.model import Model
from redraft.registry import FAMILIES, SAMPLERS
from redraft.sampling.base import Denoiser
from redraft.types import Canvas, last

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Course:
    """What all models are asked for. `texts` samples in batches of `batch`, of which the first `alone` are also written one
    at a time; `length`: tokens of a canvas, prompt included."""

    prompts: tuple[str, ...] = ("",)
    length: int = 128
    texts: int = 32
    batch: int = 32
    alone: int = 20
    seed: int = 0
    compiled: bool = False


@dataclass(frozen=True)
class Racer:
    """A model under a name. `sampler`: by name, "" is the family's own. `steps`: the numbers of steps it runs at."""

    name: str
    model: Model
    sampler: str
    steps: tuple[int, ...]
    course: Course

    @cached_property
    def prompts(self) -> list[Tensor]:
        """Ids of each prompt. `UserError` where one leaves no room, or the model cannot begin a text."""
        out = [torch.as_tensor(self.model.tokenizer.encode(text), dtype=torch.int64) for text in self.course.prompts]
        if (longest := max(map(len, out))) >= self.course.length:
            raise UserError(
                f"a prompt of {longest} tokens leaves no room on a canvas of {self.course.length}: raise --length"
            )
        return out

    @property
    def settings(self) -> tuple[int, ...]:
        """Its numbers of steps; of a sampler that has none, that of the tokens, once."""
        stepped = "steps" in SAMPLERS[self.sampler or self.model.family.sampler].options
        return self.steps if stepped else (self.course.length,)

    def canvas(self, numbers: Sequence[int]) -> Canvas:
        """The unwritten canvases [n, L] of these samples."""
        ids = [self.prompts[number % len(self.prompts)] for number in numbers]
        tokens = torch.full((len(ids), self.course.length), self.model.family.vocab)
        for row, own in zip(tokens, ids, strict=True):
            row[: len(own)] = own
        fixed = torch.arange(self.course.length) < torch.tensor([len(own) for own in ids])[:, None]
        return Canvas(tokens.to(self.model.device), fixed.to(self.model.device), torch.tensor(numbers))

    def denoiser(self, temperature: float = 1.0) -> Denoiser:
        return self.model.denoiser(temperature, 1.0, self.course.compiled)

    def calls(self, steps: int) -> int:
        """Calls of the network for a text, as the family counts them."""
        new = self.course.length - min(map(len, self.prompts))
        return FAMILIES[self.model.family.name].writing(new, steps)[0]


@dataclass(frozen=True)
class Written:
    """Canvases [n, L] of one call of a sampler, and what they cost. `new`: tokens that were not given."""

    tokens: Tensor
    new: int
    seconds: float
    calls: int


@dataclass(frozen=True)
class Lap:
    """A racer at one number of steps: texts alone, and batches."""

    racer: Racer
    steps: int
    alone: tuple[Written, ...] = field(repr=False)
    batches: tuple[Written, ...] = field(repr=False)

    @property
    def calls(self) -> float:
        """Of a text alone, mean."""
        return sum(one.calls for one in self.alone) / len(self.alone)

    def latency(self) -> list[float]:
        """Seconds within which 50, 90 and 99 % of the texts alone are finished."""
        return [float(q) for q in np.percentile([one.seconds for one in self.alone], PERCENTILES)]

    def rates(self) -> list[float]:
        """Tokens/s that 50, 90 and 99 % of the batches reach."""
        rates = [one.new / one.seconds for one in self.batches]
        return [float(q) for q in np.percentile(rates, [100 - share for share in PERCENTILES])]


def batches(course: Course) -> list[range]:
    """The numbers of the samples of each batch; the last may be smaller."""
    return [range(at, min(at + course.batch, course.texts)) for at in range(0, course.texts, course.batch)]


def written(racer: Racer, numbers: Sequence[int], steps: int, temperature: float) -> Written:
    """Have these samples written together."""
    denoiser, canvas = racer.denoiser(temperature), racer.canvas(numbers)
    new = int((~canvas.fixed).sum())
    wait(racer.model.device)
    began = time.perf_counter()
    made = last(racer.model.frames(canvas, denoiser, racer.sampler, steps, racer.course.seed))
    wait(racer.model.device)
    seconds = time.perf_counter() - began
    return Written(made.tokens.cpu(), new, seconds, denoiser.calls)


def laps(racers: Sequence[Racer], temperature: float, done: Callable[[], object]) -> Iterator[Lap]:
    """Every racer at each of its settings, `done` called after each piece of work (`work`)."""
    for racer in racers:
        course = racer.course
        for steps in racer.settings:
            made = list[list[Written]]()
            for groups in ([[number] for number in range(course.alone)], batches(course)):
                made.append([])
                for numbers in groups:
                    made[-1].append(written(racer, numbers, steps, temperature))
                    done()
            yield Lap(racer, steps, tuple(made[0]), tuple(made[1]))


def work(racers: Sequence[Racer], sweeps: int) -> int:
    """Pieces of work: texts alone, and batches, these at `sweeps` further temperatures too."""
    return sum(len(r.settings) * (r.course.alone + (1 + sweeps) * len(batches(r.course))) for r in racers)


def expected(racers: Sequence[Racer], sweeps: int) -> float:
    """Seconds that the race will take, from the time of a call alone and in a batch, which are made here: a warm-up too."""
    total = 0.0
    for racer in racers:
        course = racer.course
        for numbers, times in (([0], course.alone), (batches(course)[0], (1 + sweeps) * len(batches(course)))):
            total += times * sum(_call(racer, numbers, steps) * racer.calls(steps) for steps in racer.settings)
    return total


def _call(racer: Racer, numbers: Sequence[int], steps: int) -> float:
    """Seconds of a call, from the second to the fifth."""
    denoiser = racer.denoiser()
    frames = racer.model.frames(racer.canvas(numbers), denoiser, racer.sampler, steps, racer.course.seed)
    next(frames)
    wait(racer.model.device)
    began, before = time.perf_counter(), denoiser.calls
    for _ in islice(frames, 4):
        pass
    wait(racer.model.device)
    return (time.perf_counter() - began) / max(1, denoiser.calls - before)
