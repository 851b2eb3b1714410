"""What a sampler is given: a denoiser that counts its calls; and what a sampler is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import Absorbing, DiffusionFamily, Family
from redraft.network.device import sent
from redraft.network.head import chunk_rows
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.registry import SAMPLERS, checked_options, find
from redraft.types import Canvas, Network, Noise, Predict, View


class Denoiser:
    """A network and its family, seen from a sampler: tokens and time in, rows of log p(x0 | .) out.

    `temperature` divides the log-probabilities of the clean token, then `top_p` keeps the smallest set of tokens whose
    mass reaches it (the token that crosses is kept): one meaning for every family and sampler. `calls` counts trunk
    passes (NFE); `rows` the rows that were headed. `belief` is the model's own prediction, calling is what to draw from.
    `static`: the network is compiled, so samplers keep the shapes of their calls, whatever that adds to each.
    """

    def __init__(
        self, network: Network, family: Family, temperature: float = 1.0, top_p: float = 1.0, static: bool = False
    ):
        if not 0 <= temperature < math.inf:
            raise UserError(f"temperature must be a number of at least 0, got {temperature}")
        if not 0 < top_p <= 1:
            raise UserError(f"top_p must be in (0, 1], got {top_p}")
        self.network, self.family, self.static = network, family, static
        self.temperature, self.top_p = temperature, top_p
        self.calls = self.rows = 0

    def trunk(self, view: View) -> Tensor:
        self.calls += 1
        return self.network.trunk(view)

    def log_p(self, rows: Tensor, ids: Tensor | None = None) -> Tensor:
        """[R, d] hidden rows -> the log-probabilities [R, V] that a sampler draws from. `ids` [R]: the tokens that the network
        saw there, of a family with a clock."""
        self.rows += len(rows)
        return self.sharpened(self._read(rows, ids))

    def _read(self, rows: Tensor, ids: Tensor | None) -> Tensor:
        """[R, V] beliefs."""
        logits = self.network.head(rows)
        if ids is None:
            return logits.log_softmax(-1)
        assert isinstance(self.family, DiffusionFamily)
        return self.family.interpret(logits, ids)

    def draw(self, rows: Tensor, u: Tensor) -> Tensor:
        """[R, d] hidden rows and [R] uniforms -> ids [R]."""
        return self.each(counter_rng.categorical, rows, None, u)

    def each(self, function: Callable[..., Tensor], rows: Tensor, ids: Tensor | None, *others: Tensor) -> Tensor:
        """`function(log_p(rows, ids) [r, V], *others [r])` of a few rows at a time, joined: [R, ...]."""
        size = chunk_rows(self.family.vocab, rows.device, 2)
        chunks = zip(*(part.split(size) for part in (rows, *others)), strict=True)
        seen = repeat(None) if ids is None else ids.split(size)
        return torch.cat(
            [function(self.log_p(some, own), *its) for own, (some, *its) in zip(seen, chunks, strict=False)]
        )

    def sharpened(self, log_p: Tensor) -> Tensor:
        """[R, V] beliefs -> the log-probabilities [R, V] to draw from."""
        return sharpen(log_p, self.temperature, self.top_p)

    def __call__(self, tokens: Tensor, t: Tensor) -> Prediction:
        """What to draw from: the belief at this temperature, cut to its nucleus."""
        belief = self.belief(tokens, t)
        return Prediction(lambda places: self.sharpened(belief.at(places)), self.family.vocab)

    def belief(self, tokens: Tensor, t: Tensor) -> Prediction:
        """The prediction of a family with a clock. The network runs at the first request for rows, or not at all."""
        seen = self.seen(tokens, t)

        def at(places: Tensor) -> Tensor:
            self.rows += len(places)
            return self._read(*seen(places))

        return Prediction(at, self.family.vocab)

    def seen(self, tokens: Tensor, t: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Places [R] in the flat canvas -> hidden rows [R, d] and ids [R] there. One call at most, when it is first asked."""
        assert isinstance(self.family, DiffusionFamily)
        family, hidden = self.family, list[Tensor]()

        def at(places: Tensor) -> tuple[Tensor, Tensor]:
            if not hidden:
                hidden.append(self.trunk(family.view(tokens, t)).flatten(0, 1))
            return hidden[0][places], tokens.flatten()[places]

        return at

    def only(self, rows: Tensor) -> Denoiser:
        """The denoiser of the canvas's `rows` [R] alone, by number."""
        return self


class Prediction:
    """A prediction by rows; logs are summed in float32, categoricals drawn in float64. See `types.Predict`."""

    def __init__(self, at: Callable[[Tensor], Tensor], vocab: int):
        """`at`: places [R] in the flat canvas -> log p [R, V]."""
        self.at, self.vocab = at, vocab

    def __call__(self, places: Tensor) -> Tensor:
        return self.at(places)

    def draw(self, places: Tensor, u: Tensor) -> Tensor:
        return self.each(counter_rng.categorical, places, u)

    def best(self, places: Tensor) -> Tensor:
        return self.each(likeliest, places)

    def each(self, function: Callable[..., Tensor], places: Tensor, *others: Tensor) -> Tensor:
        size = chunk_rows(self.vocab, places.device, 2)
        chunks = zip(*(part.split(size) for part in (places, *others)), strict=True)
        return torch.cat([function(self.at(some), *theirs) for some, *theirs in chunks])


def likeliest(log_p: Tensor) -> Tensor:
    """[R, V] -> ids [R]."""
    return log_p.argmax(-1)


def sharpen(log_p: Tensor, temperature: float, top_p: float) -> Tensor:
    """[R, V] normalised log-probabilities at a temperature (0: all on the first maximum), cut to a nucleus."""
    if temperature == 0:
        return torch.full_like(log_p, -torch.inf).scatter_(-1, log_p.argmax(-1, keepdim=True), 0.0)
    if temperature != 1:
        log_p = (log_p / temperature).log_softmax(-1)
    if top_p < 1:
        ordered, places = log_p.sort(dim=-1, descending=True, stable=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        beyond = torch.empty_like(places, dtype=torch.bool).scatter_(-1, places, before >= top_p)
        log_p = log_p.masked_fill(beyond, -torch.inf).log_softmax(-1)
    return log_p


class Sampler(ABC):
    """Yields every intermediate canvas, the last one finished. Fixed tokens are never rewritten."""

    exact: ClassVar[bool] = True  # converges to the model's own distribution as its steps grow

    @property
    def rewrites(self) -> bool:
        """Whether it may rewrite a token that the family's own reverse chain would keep."""
        return False

    @abstractmethod
    def refusal(self, family: Family) -> str | None:
        """Why this sampler cannot serve that family, in a few words; None when it can."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]: ...


@dataclass(frozen=True)
class ClockSampler(Sampler):
    """A sampler of `steps` steps from t = 1 to t = 0, for every family with a clock."""

    steps: int = 64

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def refusal(self, family: Family) -> str | None:
        return clock_refusal(family)


def final(sampler: Sampler, family: Family, canvas: Canvas) -> Tensor:
    """[B, L] bool: tokens of a frame that no later frame changes. All that is written, where it is written once; only what is
    fixed, where any other token may change to the end."""
    if sampler.rewrites or not family.settles:
        return canvas.fixed
    return canvas.fixed | (canvas.tokens != family.vocab)


@dataclass(frozen=True)
class Step:
    """One reverse step, from time t to s: all that a transition may use. Positions that are not `free` keep their tokens.
    `xt` and predictions are on the network's device, all else is on the CPU."""

    number: int
    predict: Predict
    xt: Tensor  # [B, L] ids, on the network's device
    free: Tensor  # [B, L] bool
    t: Tensor  # [B, 1]
    s: Tensor  # [B, 1], at most t
    noise: Noise

    def target(self) -> Tensor:
        """[B, L]: time s where free; elsewhere the clock stands still, so nothing is predicted."""
        return self.s.where(self.free, self.t)


def walk(
    denoiser: Denoiser, canvas: Canvas, key: Key, grid: Tensor, move: Callable[[Step], Tensor]
) -> Iterator[Canvas]:
    """From the prior down a falling `grid` of times [S + 1], float64; `move` gives the ids [B, L] after each step."""
    family, rows, steps = denoiser.family, len(canvas.tokens), len(grid) - 1
    free, times = ~canvas.fixed.cpu(), sent(grid, canvas.tokens.device)
    canvas = unwritten(family, canvas, key)
    noises = counter_rng.fields(
        [key.fold_in("step", number) for number in range(steps)], sample_numbers(canvas), free.shape[1]
    )
    for number, noise in enumerate(noises):
        t, s = (grid[at].expand(rows, 1) for at in (number, number + 1))
        predict = denoiser(canvas.tokens, times[number].expand(rows, 1))
        step = Step(number, predict, canvas.tokens, free, t, s, noise)
        canvas = canvas.write(move(step))
        yield canvas


def calls(step: Tensor) -> Tensor:
    """[..., n] step numbers -> call numbers, where steps that no entry of a row has are skipped: equal steps of
    one row share a call. A negative step means never, and becomes -1."""
    ordered, place = step.sort(-1)
    fresh = (ordered.diff(dim=-1, prepend=torch.full_like(ordered[..., :1], -1)) > 0) & (ordered >= 0)
    return torch.zeros_like(place).scatter(-1, place, fresh.cumsum(-1) - 1)


def most(call: Tensor) -> int:
    """How many calls there are."""
    return int(call.max()) + 1 if call.numel() else 0


def check_steps(steps: int) -> None:
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")


def clock_refusal(family: Family) -> str | None:
    return None if isinstance(family, DiffusionFamily) else "it has no clock"


def mask_refusal(family: Family) -> str | None:
    """Why a sampler that gives the network no time cannot serve that family; None when it can."""
    why = absorbing_refusal(family)
    return "its network reads the time" if isinstance(family, Absorbing) and family.clocked else why


def absorbing_refusal(family: Family) -> str | None:
    return None if isinstance(family, Absorbing) else "it does not hide tokens behind a mask, whatever the time"


def build(name: str, options: dict[str, Any], family: Family) -> Sampler:
    """The sampler of that name ("" or None: the family's own), refused with what would work if it does not fit."""
    name = name or family.sampler
    sampler: Sampler = find("sampler", SAMPLERS, name).load()(**checked_options("sampler", SAMPLERS, name, options))
    if why := sampler.refusal(family):
        fitting = [n for n, entry in SAMPLERS.items() if entry.load()().refusal(family) is None]
        raise UserError(f"sampler {name!r} cannot serve family {family.name!r}: {why}. Try: {', '.join(fitting)}.")
    return sampler


def noise_of(canvas: Canvas, key: Key) -> Noise:
    """Uniforms [B, L] for a canvas, on the CPU: decisions that need no prediction are taken there, without a device sync.
    Row i is sample i, or sample `canvas.index[i]`: its randomness does not depend on other rows."""
    return counter_rng.field(key, sample_numbers(canvas), canvas.tokens.shape[1])


def sample_numbers(canvas: Canvas) -> Tensor:
    """[B], on the CPU."""
    return torch.arange(len(canvas.tokens)) if canvas.index is None else canvas.index


def unwritten(family: Family, canvas: Canvas, key: Key) -> Canvas:
    """The canvas with the family's prior everywhere but where it is fixed."""
    return canvas.write(sent(family.prior(noise_of(canvas, key)), canvas.tokens.device))
