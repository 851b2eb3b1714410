"""Continuous batching by rows: every text has a sampler of its own, and all samplers share the calls of one network.

A sampler is suspended where it calls the network (by `greenlet`, so it need not know), and goes on when the call was made,
together with those of all others. So texts of any prompt, length, sampler and number of steps run side by side, join and leave
between calls, and move at their own events. What a text becomes does not depend on its company, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from greenlet import GreenletExit, getcurrent, greenlet
from numpy.typing import NDArray
from torch import Tensor

from redraft.hub.model import Model, sampling_key
from redraft.network.device import sent
from redraft.network.kv_cache import Pool, RowCache
from redraft.noise.counter_rng import Key
from redraft.sampling.base import Denoiser, Prediction, noise_of
from redraft.sampling.guided import Guided, without_prompt
from redraft.serving import merge
from redraft.types import Canvas, Network, View


@dataclass(frozen=True)
class Asked:
    """What one text is to be: `canvas` of one row, whose `index` is its sample number, and the settings of `Model.sample`.
    `guidance`: the weight of classifier-free guidance by what is fixed, of a kind in sampling/guided.py; 0: none."""

    canvas: Canvas
    sampler: str = ""
    steps: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    guidance: float = 0.0
    guidance_kind: str = "unsupervised"


def unwritten(model: Model, before: NDArray[np.int64], new: int, after: NDArray[np.int64], number: int) -> Canvas:
    """The canvas [1, L] of one text, sample `number`: as `Model.canvas`, of ids."""
    row = np.concatenate([before, np.full(new, model.family.vocab), after])
    place = torch.arange(len(row))
    fixed = (place < len(before)) | (place >= len(before) + new)
    tokens = torch.as_tensor(row, dtype=torch.int64, device=model.device)
    return Canvas(tokens[None], fixed[None].to(model.device), torch.tensor([number]))


class Call(NamedTuple):
    """What a sampler waits for: hidden states of a view, or logits of hidden rows, or what is read from those."""

    view: View | None = None
    rows: Tensor | None = None
    told: merge.Told | None = None


class RowNetwork:
    """The network as one text's sampler sees it (`types.Network`, as far as samplers use it)."""

    def __init__(self, pool: Pool):
        self.pool = pool
        self.caches: list[RowCache] = []

    def trunk(self, view: View) -> Tensor:
        return _wait(Call(view=view))

    def head(self, rows: Tensor) -> Tensor:
        return _wait(Call(rows=rows))

    def cache(self, rows: int, size: int) -> RowCache:
        assert rows == 1, "a text is one row"
        self.caches.append(self.pool.add(size))
        return self.caches[-1]


class RowDenoiser(Denoiser):
    """A denoiser whose predictions are read together with those of other texts."""

    def __call__(self, tokens: Tensor, t: Tensor) -> Prediction:
        return RowPrediction(self, tokens, t)

    def each(self, function: Callable[..., Tensor], rows: Tensor, ids: Tensor | None, *others: Tensor) -> Tensor:
        self.rows += len(rows)
        return _wait(Call(told=merge.Told(function, rows, ids, others, self.temperature, self.top_p)))


class RowPrediction(Prediction):
    """What such a denoiser draws from."""

    def __init__(self, denoiser: RowDenoiser, tokens: Tensor, t: Tensor):
        self.denoiser, self.seen = denoiser, denoiser.seen(tokens, t)
        super().__init__(lambda places: denoiser.log_p(*self.seen(places)), denoiser.family.vocab)

    def each(self, function: Callable[..., Tensor], places: Tensor, *others: Tensor) -> Tensor:
        return self.denoiser.each(function, *self.seen(places), *others)


def _wait(call: Call) -> Tensor:
    found: Tensor = getcurrent().parent.switch(call)
    return found


def guided_by_fixed(plain: Denoiser, asked: Asked) -> Denoiser:
    """The denoiser of a text, guided as it asks."""
    if not asked.guidance:
        return plain
    noise = noise_of(asked.canvas, Key.of(asked.seed).fold_in("blank"))
    blank = without_prompt(plain.family, asked.canvas.tokens, noise, asked.guidance_kind)
    if blank.ids is not None:
        blank = replace(blank, ids=sent(blank.ids, asked.canvas.tokens.device))
    return Guided(plain, asked.guidance, asked.canvas.fixed, blank)


class Row:
    """A text on its way: its latest `canvas`, which took so many `frames` and `calls`, whether it is `done`, and
    the `error` that ended it if one did."""

    def __init__(self, model: Model, network: RowNetwork, asked: Asked):
        self.model, self.network, self.asked = model, network, asked
        self.canvas, self.done, self.frames, self.calls = asked.canvas, False, 0, 0
        self.error: BaseException | None = None
        self.call: Call | None = None
        self.denoiser = RowDenoiser(cast(Network, network), model.family, asked.temperature, asked.top_p)
        self._sampler = greenlet(self._write)

    def _write(self, _: Any = None) -> None:
        asked, denoiser = self.asked, guided_by_fixed(self.denoiser, self.asked)
        sampler = self.model.sampler(asked.sampler, asked.steps, asked.options)
        # The engine has switched gradients off: what is stopped in the middle must restore nothing.
        for canvas in sampler(denoiser, asked.canvas, sampling_key(asked.seed)):
            self.canvas, self.calls = canvas, self.denoiser.calls
            self.frames += 1

    def go_on(self, found: Tensor | None = None) -> None:
        """Run the sampler to its next call, or to its end."""
        self._resume(self._sampler.switch, found)

    def fail(self, error: BaseException) -> None:
        """Raise `error` where the sampler waits."""
        self._resume(self._sampler.throw, error)

    def _resume(self, how: Any, what: Any) -> None:
        self.call = None
        try:
            self.call = how(what)
        except Exception as error:  # of this text alone: the others go on
            self.error = error
        self.done = self._sampler.dead

    def stop(self) -> None:
        if not self._sampler.dead:
            self._sampler.throw(GreenletExit)
        self.done = True


class Engine:
    """Rows that share a network. `step` makes one round of calls; nothing here is a thread. `fits`: how many rows a call had
    memory for, where one had too many."""

    def __init__(self, model: Model, compiled: bool = False):
        self.model, self.network, self.fits = model, model.for_sampling(compiled), 0
        self.pool = Pool(self.network.shape, model.device, self.network.compute)
        self.rows: list[Row] = []

    @torch.no_grad()
    def add(self, asked: Asked) -> Row:
        """Begin a text. What is wrong with its settings is its `error`."""
        row = Row(self.model, RowNetwork(self.pool), asked)
        row.go_on()
        self._keep([*self.rows, row])
        return row

    def remove(self, row: Row) -> None:
        """End a text where it is; its place is free at once."""
        row.stop()
        self._keep(self.rows)

    @torch.no_grad()
    def step(self) -> list[Row]:
        """Make the calls that the rows wait for: of the trunk when all of them do, else of those that are not there yet. The
        rows that were served."""
        served = [row for row in self.rows if row.call is not None and row.call.view is None] or list(self.rows)
        for row, found in zip(served, self._calls(served), strict=True):
            row.fail(found) if isinstance(found, BaseException) else row.go_on(found)
        self._keep(self.rows)
        return served

    def _calls(self, rows: list[Row]) -> list[Tensor | BaseException]:
        """The result of each row's call. Where they fail together each is tried alone, so that one fails alone."""
        calls = [row.call for row in rows if row.call is not None]
        try:
            return list(self._made(calls))
        except Exception as error:
            if len(calls) == 1:
                return [error]
            half = len(rows) // 2
            self.fits = half if out_of_memory(error) else self.fits
            return [*self._calls(rows[:half]), *self._calls(rows[half:])]

    def _made(self, calls: list[Call]) -> list[Tensor]:
        if calls[0].view is not None:
            return merge.trunks(self.network, [call.view for call in calls if call.view is not None])
        out: dict[int, Tensor] = {}
        heads = {number: call.rows for number, call in enumerate(calls) if call.rows is not None}
        told = {number: call.told for number, call in enumerate(calls) if call.told is not None}
        if heads:
            out |= zip(heads, merge.heads(self.network, list(heads.values())), strict=True)
        if told:
            out |= zip(told, merge.told(self.network, self.model.family, list(told.values())), strict=True)
        return [out[number] for number in range(len(calls))]

    def _keep(self, rows: list[Row]) -> None:
        """The rows that are still at work; what the others had in the pool is free."""
        for row in rows:
            if row.done:
                for cache in row.network.caches:
                    self.pool.remove(cache)
                row.network.caches.clear()
        self.rows = [row for row in rows if not row.done]


def out_of_memory(error: BaseException | None) -> bool:
    """Torch has a class for an accelerator's memory, and a `RuntimeError` for the host's."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)


def on_host(rows: Sequence[Row]) -> list[NDArray[np.int64]]:
    """The ids [L] of each row, by one copy from the device."""
    sizes = [row.canvas.tokens.shape[1] for row in rows]
    return [ids.numpy() for ids in torch.cat([row.canvas.tokens[0] for row in rows]).cpu().split(sizes)] if rows else []
