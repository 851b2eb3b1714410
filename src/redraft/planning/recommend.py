"""Recommendation of family, size, tokens and sampling steps for a budget, with the cost of serving included.

Training N parameters on D tokens costs c N D FLOPs, generating G tokens s(N) G more, s by serving_cost.py. With one budget,
L(N, D) is minimised within it; a model that generates many tokens should be smaller and trained for
longer than the training optimum (Sardana et al. 2023, arXiv:2401.00448). With a loss to be reached, the sum is least instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from redraft.errors import UserError
from redraft.planning.serving_cost import Calls, Hardware, writing
from redraft.scaling.laws.multiplier import Estimate
from redraft.scaling.loss_surface import LossSurface, surface
from redraft.scaling.results import Fits

Cost = Callable[[float], float]  # of a number of parameters
STEPS = (16, 64, 256, 1024)
SMALLEST, LARGEST = 1e3, 1e15  # parameters that are looked at
FAR = 3.0  # times the largest budget, size or tokens of a study, from which on a prediction is called far


@dataclass(frozen=True)
class Demand:
    """What is wanted. At least one of `budget` and `quality`."""

    budget: float | None = None  # FLOPs, for training and for `generate` tokens
    quality: float | None = None  # nats per token, at most
    latency: float | None = None  # seconds a text, alone on one device
    generate: float = 0.0  # tokens over the model's life
    length: int = 1024  # tokens of a text
    steps: tuple[int, ...] = STEPS  # of the families that have a choice


@dataclass(frozen=True)
class Option:
    """One family with one number of steps, at its best size."""

    family: str
    steps: int
    params: float
    tokens: float
    loss: Estimate  # nats per token, at the model's size and tokens
    loss_kind: str
    training_flops: float
    serving_flops: float  # of all tokens to be generated
    seconds: float  # a text alone on one device
    misses: str  # what of the demand it does not meet; empty if it meets all
    beyond: float  # times that budget, size or tokens are above the study's largest or below its smallest; else 1
    beyond_in: str  # which of them is farthest outside; empty where none is
    far: bool  # size or tokens are far from all runs and from the best ones too: the law says nothing there
    sampling_loss: float | None  # nats/token that samples lose by few calls; None where it was not measured

    @property
    def total_flops(self) -> float:
        return self.training_flops + self.serving_flops


@dataclass(frozen=True)
class Recommendation:
    """Every option, best first, far ones last; `chosen` is None where none that is not far meets the demand.

    `unknown`: what no number here knows.
    """

    demand: Demand
    hardware: Hardware
    convention: str | None
    options: tuple[Option, ...]
    chosen: Option | None
    unknown: tuple[str, ...]
    calls: Calls | None = None  # what was measured of samples by calls


def recommend(fits: Fits, demand: Demand, device: Hardware, calls: Calls | None = None) -> Recommendation:
    """The best option of every family and number of steps; with a budget, these are weighed by what `calls` measured.

    `UserError` for a demand without budget and quality.
    """
    _check(demand)
    if demand.budget is None and demand.quality is None:
        raise UserError("a recommendation needs --budget FLOPs, or --quality in nats per token, or both")
    surfaces = [
        surface(name, fitted) for name, fitted in fits.families.items() if fitted.laws.loss and fitted.laws.params
    ]
    if not surfaces:
        raise UserError(
            "the study fits no law of the best size and loss, so it can recommend nothing: add budgets and sizes"
        )
    options = [
        option
        for s in surfaces
        for steps in _choices(s, demand)
        if (option := _option(s, steps, demand, device, calls))
    ]
    ranked = sorted(options, key=lambda o: (o.far, bool(o.misses), _rank(o, demand, calls)))
    chosen = ranked[0] if ranked and not ranked[0].misses and not ranked[0].far else None
    if not ranked:
        floors = ", ".join(f"{s.family} {s.law.E:.4g}" for s in surfaces)
        raise UserError(
            f"no family does it with {SMALLEST:g} to {LARGEST:g} parameters and at least a token to train on "
            f"(irreducible losses: {floors}): ask for a larger budget, a higher loss, or less generating"
        )
    return Recommendation(
        demand, device, fits.convention, tuple(ranked), chosen, tuple(_unknown(surfaces, ranked, demand, calls)), calls
    )


def _check(demand: Demand) -> None:
    numbers = {"--budget": demand.budget, "--quality": demand.quality, "--latency": demand.latency}
    for flag, value in numbers.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{flag} is {value:g}; it must be a finite number above 0")
    if not (math.isfinite(demand.generate) and demand.generate >= 0):
        raise UserError(f"--generate is {demand.generate:g}; it must be a number of tokens, 0 or more")
    if demand.length < 1 or not demand.steps or min(demand.steps) < 1:
        raise UserError("--text and --sampling-steps are numbers of tokens and steps, 1 or more")


def _rank(option: Option, demand: Demand, calls: Calls | None) -> tuple[bool, float, float]:
    """With a budget the loss counts, and what samples lose by few calls where that was measured, else what reaching the
    quality costs; those whose calls nobody measured come last where others' were; at equal ones more steps write better
    text."""
    untold = calls is not None and option.sampling_loss is None
    if demand.budget is None:
        return untold, option.total_flops, -option.steps
    return untold, option.loss.value + (option.sampling_loss or 0.0), -option.steps


def _choices(s: LossSurface, demand: Demand) -> Sequence[int]:
    """Left to right has one number of steps; nobody needs more than the text has tokens."""
    if writing(s.family, s.kind, demand.length, 1).calls == demand.length:
        return [demand.length]
    return sorted({min(steps, demand.length) for steps in demand.steps})


def _option(s: LossSurface, steps: int, demand: Demand, device: Hardware, calls: Calls | None) -> Option | None:
    """None where no size does what is asked."""
    way = writing(s.family, s.kind, demand.length, steps)
    texts = demand.generate / demand.length
    serve = lambda params: texts * way.flops(s.cost / 3 * params)
    # A hair below the latency, so that rounding does not miss it.
    most = LARGEST if demand.latency is None else way.largest(demand.latency * (1 - 1e-9), s.cost / 3, device)
    lost = calls.lost(s.family, steps / demand.length) if calls else None
    budget, quality = demand.budget, demand.quality
    if budget is None and quality is not None:  # the model must be as much better as its samples lose
        found = _by_quality(s, serve, quality - (lost or 0.0), most)
    else:
        assert budget is not None
        found = _by_budget(s, serve, budget, most)
    if found is None:
        return None
    params, tokens = found
    flops, loss = s.cost * params * tokens, s.loss(params, tokens)
    # The interval is of the best loss at a budget: it says nothing of sizes and tokens far from all that was trained.
    kind, outside = s.kind or "kind not stated", s.outside(params, tokens)
    far = s.off_optimum(params, tokens) > FAR
    spread = Estimate(1.0) if far else s.spread(flops)
    ends = Estimate(loss, spread.low and loss * spread.low, spread.high and loss * spread.high)
    seconds = way.seconds(params, s.cost / 3 * params, device)
    what, beyond = max(outside.items(), key=lambda item: item[1])
    misses = "; ".join(_misses(loss + (lost or 0.0), seconds, demand))
    return Option(
        s.family, steps, params, tokens, ends, kind, flops, serve(params), seconds, misses, beyond,
        what if beyond > 1 else "", far, lost,
    )  # fmt: skip


def _by_budget(s: LossSurface, serve: Cost, budget: float, most: float) -> tuple[float, float] | None:
    """The N <= `most` and D of least loss for what is left of the budget after serving."""

    def tokens(params: float) -> float:
        return (budget - serve(params)) / (s.cost * params)

    largest = budget / (serve(1.0) + s.cost)  # with one token to train on: both costs grow as N
    best = _least(lambda n: s.loss(n, tokens(n)) if tokens(n) >= 1 else math.inf, min(largest, most))
    return None if best is None else (best, tokens(best))


def _by_quality(s: LossSurface, serve: Cost, quality: float, most: float) -> tuple[float, float] | None:
    """The N <= `most` and D that reach the loss at the least cost of training and serving."""
    cost = lambda n: s.cost * n * s.tokens_for(n, quality) + serve(n) if s.tokens_for(n, quality) >= 1 else math.inf
    best = _least(cost, most)
    return None if best is None else (best, s.tokens_for(best, quality))


def _least(cost: Cost, largest: float) -> float | None:
    """The size of least cost, by looks that narrow down; None where every size costs infinitely much."""
    if largest < SMALLEST:
        return None
    low, high = math.log(SMALLEST), math.log(largest)
    for _ in range(6):
        sizes = np.exp(np.linspace(low, high, 121))
        values = [cost(float(n)) for n in sizes]
        best = int(np.argmin(values))
        low, high = (math.log(sizes[min(max(i, 0), 120)]) for i in (best - 1, best + 1))
    return float(sizes[best]) if math.isfinite(values[best]) else None


def _misses(loss: float, seconds: float, demand: Demand) -> Iterator[str]:
    if demand.quality is not None and loss > demand.quality * (1 + 1e-9):
        yield f"loss {loss:.3f} above {demand.quality:g}"
    if demand.latency is not None and seconds > demand.latency:
        yield f"{seconds:.3g} s a text above {demand.latency:g}"


def _unknown(
    surfaces: Sequence[LossSurface], options: Sequence[Option], demand: Demand, calls: Calls | None
) -> Iterator[str]:
    for what, name in (("budget", "Training budgets"), ("size", "Sizes"), ("tokens", "Tokens")):
        far = max((o.beyond for o in options if o.beyond_in == what), default=1.0)
        if far > FAR:
            yield f"{name} are up to {far:.3g} times outside those that were fitted: the laws may bend before that."
    if any(not s.fitted for s in surfaces):
        whom = ", ".join(s.family for s in surfaces if not s.fitted)
        yield f"No irreducible loss: L(N, D) of {whom} is derived from optima alone, so gains far out are optimistic."
    if {"exact", "bound"} <= {s.kind for s in surfaces}:
        yield "Diffusion losses are upper bounds, AR's are exact: part of a gap may be the bound and not the model."
    if any(s.kind is None for s in surfaces):
        yield f"Whether losses of {', '.join(s.family for s in surfaces if s.kind is None)} are exact or bounds."
    if calls is not None:
        yield "Whether what samples lose by few calls is the same at another size: it was measured on the study's runs."
    elif any(s.family != "ar" for s in surfaces):
        yield "How good samples are after so many steps: a likelihood does not see it. Measure a frontier."
    yield "Repeated data, other text, and learning rates other than those of the study's runs."
    if demand.latency is not None or demand.generate:
        yield (
            "Real kernels: a call is taken to read all weights once in bfloat16 and to multiply at "
            "the stated rate; attention over long texts and batching are left out."
        )
