"""Requests become texts to write: encoded, checked against the model and the limits, and numbered as offline rows are."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import UnionType
from typing import Any, get_type_hints

import numpy as np

from redraft.errors import UserError
from redraft.files import clean
from redraft.hub.model import Model
from redraft.numbers import WIDEST
from redraft.registry import SAMPLERS, checked_options, find
from redraft.sampling.base import Sampler
from redraft.serving.engine import Asked, unwritten
from redraft.serving.http.schema import Chat, Completion, Scored, Writes
from redraft.serving.jobs import Text
from redraft.serving.writing import Ids, Writing, token_log_p
from redraft.text.examples import chat
from redraft.text.examples.examples import encoded
from redraft.text.examples.prompts import Part


@dataclass(frozen=True)
class Limits:
    """Of one request. `length`: tokens of prompt, text and suffix; 0: as many as the model's rows in training had.
    `texts`: prompts times n. `work`: noise draws times tokens of a score."""

    length: int = 0
    steps: int = 4096
    texts: int = 64
    work: int = 1 << 20

    def of(self, model: Model) -> int:
        return self.length or model.length


@dataclass(frozen=True)
class Asking:
    """A checked request: its texts in the order of their numbers, and what the answer says of it."""

    texts: list[Text]
    seed: int
    prompt_tokens: int


def asked_completion(model: Model, request: Completion, limits: Limits) -> Asking:
    _refuse_logprobs(model, request.logprobs is not None)
    suffix = _ids(model, request.suffix or "")
    prompts = [_ids(model, prompt) for prompt in request.prompts]
    start = [0 if request.echo else len(prompt) for prompt in prompts]
    top = request.logprobs
    finish = [
        None if top is None else partial(_with_log_p, model, before, at, top) for before, at in zip(prompts, start)
    ]
    return _asking(model, request, limits, prompts, suffix, finish, request.max_tokens)


def asked_chat(model: Model, request: Chat, limits: Limits, template: Any) -> Asking:
    _refuse_logprobs(model, request.logprobs)
    text = chat.asked([message.turn() for message in request.messages], template, "messages")
    before, _ = encoded((Part(clean(text), False),), model.tokenizer, "none", 0)  # as they are for fine-tuning
    top = request.top_logprobs or 0
    finish = partial(_with_log_p, model, before, len(before), top) if request.logprobs else None
    most = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    return _asking(model, request, limits, [before], before[:0], [finish], most)


def checked_score(model: Model, request: Scored, limits: Limits) -> Callable[[], Any]:
    """What scores the text. `UserError` where it is too long for one request."""
    tokens = len(model.tokenizer.encode(request.text))
    work = tokens * (1 if model.family.exact else request.draws)
    if work > limits.work:
        raise UserError(f"{tokens} tokens and {request.draws} draws are {work} tokens to read: at most {limits.work}")
    return lambda: model.score(request.text, request.draws, request.seed)[0]


def _asking(
    model: Model,
    request: Writes,
    limits: Limits,
    prompts: list[Ids],
    suffix: Ids,
    finish: Sequence[Callable[[Writing], Any] | None],
    most: int | None,
) -> Asking:
    if request.frames and not request.stream:
        raise UserError("frames are streamed: set stream to true, or leave frames out")
    if len(prompts) * request.n > limits.texts:
        raise UserError(f"{len(prompts)} prompts times n={request.n} texts are more than {limits.texts} in one request")
    sampler = _sampler(model, request, limits)
    once, seed = model.family.settles and not sampler.rewrites, secrets.randbelow(2**31)
    seed = seed if request.seed is None else request.seed
    texts = []
    for before, after in zip(prompts, finish, strict=True):
        new = _room(model, limits, before, suffix, most)
        for number in range(request.n):
            canvas = unwritten(model, before, new, suffix, number)
            asked = Asked(
                canvas, request.sampler, request.steps, request.temperature, request.top_p, seed, request.options,
                request.guidance, request.guidance_kind,
            )  # fmt: skip
            writing = Writing(model.tokenizer, before, suffix, once, request.stops, request.stream)
            texts.append(Text(asked, writing, after))
    return Asking(texts, seed, sum(map(len, prompts)) + len(suffix) * len(prompts))


def _room(model: Model, limits: Limits, before: Ids, after: Ids, most: int | None) -> int:
    """How many tokens are to be written."""
    context, given = limits.of(model), len(before) + len(after)
    new = context - given if most is None else most
    if given + new > context or new < 0 or (most is None and new == 0):
        asked = f" and max_tokens of {most}" if most is not None else ""
        raise UserError(f"prompt and suffix of {given} tokens{asked} do not fit the context of {context} tokens")
    if given + new == 0:
        raise UserError("there is nothing to write: max_tokens is 0 and the prompt is empty")
    return new


def _sampler(model: Model, request: Writes, limits: Limits) -> Sampler:
    """The sampler asked for, its settings of the right kind and in their ranges."""
    name = request.sampler or model.family.sampler
    checked_options("sampler", SAMPLERS, name, request.options)
    hints = get_type_hints(find("sampler", SAMPLERS, name).load())
    for key, value in request.options.items():
        _check_option(key, value, hints.get(key))
    steps = request.options.get("steps", request.steps)
    if steps > limits.steps:
        raise UserError(f"steps must be at most {limits.steps}, got {steps}")
    return model.sampler(name, request.steps, request.options)


def _check_option(key: str, value: Any, kind: type | UnionType | None) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    sound = not number or (math.isfinite(value) and abs(value) <= WIDEST)
    fits = kind is None or isinstance(value, kind) or (number and isinstance(1.0, kind))
    if not (sound and fits) or isinstance(value, bool):
        name = getattr(kind, "__name__", None) or str(kind).partition(" | redraft")[0]
        raise UserError(f"options.{key} must be {name}, and a number at most {WIDEST} in size: got {str(value)[:40]!r}")


def _refuse_logprobs(model: Model, wanted: bool) -> None:
    if wanted and not model.family.exact:
        raise UserError(
            f"logprobs are for families with exact ones, and {model.family.name} has a bound: ask /v1/score for it"
        )


def _ids(model: Model, text: str) -> Ids:
    if chat.END in text:
        raise UserError("the text holds the characters that stand for the end of text")
    return model.tokenizer.encode(text)


def _with_log_p(model: Model, before: Ids, start: int, top: int, writing: Writing) -> Any:
    """Of the tokens from `start` on; the model's own, whatever temperature they were drawn at."""
    return token_log_p(model, np.concatenate([before, writing.ids]), start, top)
