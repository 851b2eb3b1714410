"""Generation for tasks: text until a stop string, and whether greedy decoding gives a stated continuation.

Greedy means, by family:

  AR, Eso-LM, BD3-LM   the likeliest token given all before it, left to right
  MDLM                 the surest token of those still hidden, one a call (SMDM's and LLaDA's check)
  the rest             their own sampler at temperature 0, one step a token: values are the likeliest, moves are still drawn

A canvas holds prompts of one length, so nothing is padded; what is drawn at random has a canvas of its own, keyed by its
question. So no text depends on what was asked beside it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redraft.errors import UserError, unknown
from redraft.evaluation.likelihood.continuations import Progress, Request, Scorer
from redraft.families.ar import AR
from redraft.families.base import Family
from redraft.families.bd3lm import BD3LM
from redraft.families.esolm import EsoLM
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.registry import SAMPLERS, find
from redraft.sampling.base import Denoiser, mask_refusal
from redraft.sampling.base import build as build_sampler
from redraft.sampling.guided import Guided, without_prompt
from redraft.types import Canvas, last

CHECK_EVERY = 8  # frames between looks for a stop string
_DRAWS_NOTHING = ("left_to_right", "low_confidence", "entropy_bounded")  # at temperature 0
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # all names of one setting
_KNOWN = ("until", *_LENGTHS, "do_sample", "temperature", "top_p", "sampler", "steps")


@dataclass(frozen=True)
class Writing:
    """How to continue. `tokens`: the most; `steps` 0: one a token; `sampler` "": the family's greedy one at temperature 0,
    else its own."""

    tokens: int
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    sampler: str = ""
    steps: int = 0

    @staticmethod
    def of(settings: Mapping[str, Any], tokens: int) -> Writing:
        """From a task's `generation_kwargs`, as lm-evaluation-harness reads them: without `do_sample`, or where it is false,
        greedy; other names of `max_gen_toks` are names of it. `tokens` where nothing says. What is null is not given; zero
        and false are. Raises `UserError` for a setting that is not known, or is none of its values."""
        from lm_eval.models.utils import normalize_gen_kwargs

        given = {name: value for name, value in settings.items() if value is not None}
        if stray := [name for name in given if name not in _KNOWN]:
            raise unknown("generation setting", stray[0], _KNOWN)
        if not isinstance(given.get("do_sample", False), bool):
            raise UserError(f"generation setting do_sample is true or false, got {given['do_sample']!r}")
        try:
            read: Mapping[str, Any] = normalize_gen_kwargs(given, tokens)
            warmth = float(read.get("temperature", 1.0)) if read["do_sample"] else 0.0
            writing = Writing(
                tokens=int(read["max_gen_toks"]),
                until=tuple(str(stop) for stop in read["until"]),
                temperature=warmth,
                top_p=float(read.get("top_p", 1.0)) if warmth else 1.0,
                sampler=str(read.get("sampler", "")),
                steps=int(read.get("steps", 0)),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"generation settings {given} cannot be read: {error}") from None
        return writing.checked()

    def checked(self) -> Writing:
        """Itself; `UserError` for a number out of its range."""
        ranges = {
            "max_gen_toks at least 0": self.tokens >= 0,
            "temperature a number at least 0": 0 <= self.temperature < math.inf,
            "top_p above 0 and at most 1": 0 < self.top_p <= 1,
            "steps at least 0": self.steps >= 0,
        }
        if bad := [said for said, holds in ranges.items() if not holds]:
            raise UserError(f"a task asks for {self}: {bad[0]} is what works")
        return self


def greedy_way(family: Family) -> str:
    """How greedy decoding goes: argmax_chain, confidence, or the sampler's name."""
    if isinstance(family, AR | EsoLM | BD3LM):
        return "argmax_chain"
    return "confidence" if mask_refusal(family) is None else family.sampler


def write(scorer: Scorer, jobs: Sequence[tuple[Request, Writing]], progress: Progress | None = None) -> list[str]:
    """The continuation of each request's context, in the order of `jobs`. What a request was to be continued with is not
    looked at."""
    texts: dict[int, str] = {n: "" for n, (_, writing) in enumerate(jobs) if writing.tokens == 0}
    asked = [n for n in range(len(jobs)) if n not in texts]
    for places in _together(scorer, [jobs[n] for n in asked]):
        numbers = [asked[place] for place in places]
        rows = finished(scorer, [jobs[n][0] for n in numbers], jobs[numbers[0]][1])
        texts |= zip(numbers, rows, strict=True)
        if progress is not None:
            progress(len(texts), len(jobs))
    return [texts[n] for n in range(len(jobs))]


def is_greedy(scorer: Scorer, requests: Sequence[Request], progress: Progress | None = None) -> list[bool]:
    """Whether greedy decoding writes each request's continuation, were it to stop there."""
    told = progress or (lambda done, total: None)
    if greedy_way(scorer.model.family) == "argmax_chain":
        flags = list[bool]()
        for at in range(0, len(requests), scorer.batch):
            flags += [wrong == 0 for wrong in scorer.mismatches(requests[at : at + scorer.batch])]
            told(len(flags), len(requests))
        return flags
    jobs = [(request, Writing(len(request.continuation))) for request in requests]
    out: dict[int, bool] = {}
    for numbers in _together(scorer, jobs):
        canvas = _canvas_of(scorer, [requests[n] for n in numbers], jobs[numbers[0]][1])
        for n, row in zip(numbers, last(_frames(scorer, canvas, jobs[numbers[0]])).tokens.tolist(), strict=True):
            out[n] = tuple(row) == requests[n].context + requests[n].continuation
        told(len(out), len(requests))
    return [out[n] for n in range(len(requests))]


def finished(scorer: Scorer, requests: Sequence[Request], writing: Writing) -> list[str]:
    """One canvas of requests whose contexts are equally long."""
    model, prompt = scorer.model, len(requests[0].context)
    canvas = _canvas_of(scorer, requests, writing)
    for number, frame in enumerate(_frames(scorer, canvas, (requests[0], writing)), start=1):
        canvas = frame
        if isinstance(model.family, AR) and number % CHECK_EVERY == 0:
            seen = canvas.tokens[:, : prompt + number]
            if all(_ended(scorer, row, prompt, writing.until) for row in seen):
                canvas = Canvas(seen, canvas.fixed[:, : seen.shape[1]])
                break
    return [cut(_text(scorer, row, prompt), writing.until) for row in canvas.tokens]


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((at for stop in until if stop and (at := text.find(stop)) >= 0), default=len(text))]


def _together(scorer: Scorer, jobs: Sequence[tuple[Request, Writing]]) -> Iterator[list[int]]:
    """Numbers of the jobs that share a canvas: equally long, written alike, nothing drawn; longest first."""
    ordered = sorted(range(len(jobs)), key=lambda n: (-len(jobs[n][0].context), repr(jobs[n][1]), n))
    for (_, writing), group in itertools.groupby(ordered, key=lambda n: (len(jobs[n][0].context), jobs[n][1])):
        name = _sampler_of(scorer.model.family, writing)[0]
        alone = writing.temperature > 0 or name not in _DRAWS_NOTHING
        numbers, size = list(group), 1 if alone else scorer.batch
        yield from (numbers[at : at + size] for at in range(0, len(numbers), size))


def _sampler_of(family: Family, writing: Writing) -> tuple[str, dict[str, Any]]:
    """Its name, and its settings."""
    name = writing.sampler
    if not name:
        cold = writing.temperature == 0 and mask_refusal(family) is None
        name = "low_confidence" if cold else family.sampler
    takes_steps = "steps" in find("sampler", SAMPLERS, name).options
    return name, {"steps": writing.steps or writing.tokens} if takes_steps else {}


def _frames(scorer: Scorer, canvas: Canvas, job: tuple[Request, Writing]) -> Iterator[Canvas]:
    model, (request, writing) = scorer.model, job
    name, settings = _sampler_of(model.family, writing)
    key = Key.of(scorer.seed).fold_in("write", request.question)
    plain = model.denoiser(writing.temperature, writing.top_p)
    denoiser = _guided(scorer, plain, canvas, key)
    return torch.no_grad()(build_sampler(name, settings, model.family).__call__)(denoiser, canvas, key)


def _guided(scorer: Scorer, plain: Denoiser, canvas: Canvas, key: Key) -> Denoiser:
    rows = torch.arange(len(canvas.tokens), device=canvas.tokens.device)
    noise = counter_rng.field(key.fold_in("blank"), rows, canvas.tokens.shape[1])
    blank = without_prompt(scorer.model.family, canvas.tokens, noise, scorer.guidance.kind)
    return Guided(plain, scorer.guidance.weight, canvas.fixed, blank)


def _canvas_of(scorer: Scorer, requests: Sequence[Request], writing: Writing) -> Canvas:
    prompt = len(requests[0].context)
    if prompt + writing.tokens > scorer.model.length:
        raise UserError(
            f"{prompt} tokens of prompt and max_gen_toks {writing.tokens} are more than the model's {scorer.model.length}: "
            f"--truncate cuts prompts on the left, and counts them"
        )
    tokens = torch.zeros(len(requests), prompt + writing.tokens, dtype=torch.int64)
    tokens[:, :prompt] = torch.tensor([request.context for request in requests], dtype=torch.int64)
    fixed = (torch.arange(tokens.shape[1]) < prompt).expand_as(tokens)
    return Canvas(tokens.to(scorer.model.device), fixed.to(scorer.model.device))


def _text(scorer: Scorer, row: Tensor, prompt: int) -> str:
    """What was written after the prompt, up to an end of text: decoded with it, as its last token may be half a letter."""
    tokenizer = scorer.model.tokenizer
    return scorer.model.text(row, prompt)[len(tokenizer.decode(row[:prompt].tolist())) :]


def _ended(scorer: Scorer, row: Tensor, prompt: int, until: Sequence[str]) -> bool:
    text = _text(scorer, row, prompt)
    return bool((row[prompt:] == scorer.model.tokenizer.eos).any()) or cut(text, until) != text
