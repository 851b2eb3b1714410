"""Many texts offline: sorted by length, so that rows of a call are alike, and written as many at once as may be."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from redraft.hub.model import Model
from redraft.serving.engine import Asked, Engine, Row, on_host, unwritten
from redraft.serving.writing import Ids, Writing


@dataclass(frozen=True)
class Wanted:
    """Text `number` of a seed: `new` tokens between a prompt and a suffix. `settings`: further ones of `Asked`."""

    before: Ids
    new: int
    after: Ids
    number: int
    settings: Mapping[str, Any]

    @property
    def length(self) -> int:
        return len(self.before) + self.new + len(self.after)

    def asked(self, model: Model) -> tuple[Asked, Writing]:
        asked = Asked(unwritten(model, self.before, self.new, self.after, self.number), **self.settings)
        sampler = model.sampler(asked.sampler, asked.steps, asked.options)
        once = model.family.settles and not sampler.rewrites
        return asked, Writing(model.tokenizer, self.before, self.after, once, (), False)


@dataclass(frozen=True)
class Written:
    """Text `place` of what was asked for, as `Model.sample` has it, after so many calls; tokens up to its end."""

    place: int
    text: str
    tokens: int
    calls: int


def written(model: Model, wanted: Sequence[Wanted], at_once: int, compiled: bool = False) -> Iterator[Written]:
    """Each text when it is finished. A text ends at its end of document, where that can no longer change. Raises what a
    sampler raises."""
    left = deque(sorted(range(len(wanted)), key=lambda place: -wanted[place].length))
    engine, running = Engine(model, compiled), dict[Row, tuple[int, Writing]]()
    try:
        while left or running:
            while left and len(running) < at_once:
                asked, writing = wanted[place := left.popleft()].asked(model)
                running[engine.add(asked)] = place, writing
            if engine.rows:
                engine.step()
            if engine.fits:
                at_once, engine.fits = engine.fits, 0
            yield from _ended(model, engine, running)
    finally:
        for row in running:
            engine.remove(row)


def _ended(model: Model, engine: Engine, running: dict[Row, tuple[int, Writing]]) -> Iterator[Written]:
    """The texts that the last step has finished, which leave."""
    rows = list(running)
    for row, ids in zip(rows, on_host(rows), strict=True):
        if row.error is not None:
            raise row.error
        place, writing = running[row]
        if writing.see(ids, row.done):
            engine.remove(row)
            del running[row]
            text = model.text(torch.as_tensor(ids), len(writing.before))
            yield Written(place, text, len(writing.ids), row.calls)
