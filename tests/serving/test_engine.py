"""Continuous batching: a text in company is the text alone, whenever it joins and whoever leaves; a failure is its own."""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import build
from redraft.hub.model import Model
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.registry import FAMILIES, SAMPLERS
from redraft.sampling.base import build as build_sampler
from redraft.serving.engine import Asked, Engine, guided_by_fixed
from redraft.text.tokenizers.tokenizer import Bytes
from redraft.types import Canvas, View, last

V = 257


def fits(family: str, sampler: str) -> bool:
    try:
        build_sampler(sampler, {}, build(family, {}, V))
    except UserError:
        return False
    return True


PAIRS = [(family, sampler) for family in FAMILIES for sampler in SAMPLERS if fits(family, sampler)]


def model_of(name: str, **options: Any) -> Model:
    """Random weights in float64: no rounding decides a draw."""
    family = build(name, options, V)
    shape = Shape("dit", depth=2, heads=2, width=16, hidden=32, vocab=V, cond=8)
    network = initialised(shape, 0).double()
    for parameter in network.parameters():
        parameter.data = (
            parameter.data + 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
        )
    network.compute = torch.float64
    return Model(family, network, Bytes(), 32, {})


def asked(model: Model, sampler: str) -> list[Asked]:
    """Texts of different prompts, lengths, steps, temperatures, seeds and sample numbers."""
    suffix = "" if model.family.name in ("ar", "bd3lm") else "z"
    settings = [
        ("", 9, "", 4, 1.0, 0, 0), ("ab", 12, suffix, 7, 0.8, 1, 3), ("prompt", 14, "", 3, 1.0, 0, 1),
        ("a", 5, suffix, 16, 0.0, 2, 0),
        ("b", 12, "", 4, 1.0, 0, 5),
    ]  # fmt: skip
    out = []
    for prompt, length, after, steps, temperature, seed, number in settings:
        canvas = model.canvas(prompt, 1, length, after)
        one = Canvas(canvas.tokens, canvas.fixed, torch.tensor([number]))
        out.append(Asked(one, sampler, steps, temperature, 1.0, seed))
    return out


def write_all(model: Model, asked: list[Asked], at_once: int) -> list[Canvas]:
    """The finished canvases of many texts, `at_once` at a time; a text that ends makes room for the next."""
    engine, rows, left = Engine(model), [], iter(asked)
    while True:
        while len(engine.rows) < at_once and (one := next(left, None)) is not None:
            rows.append(engine.add(one))
        if not engine.rows:
            break
        engine.step()
    for row in rows:
        if row.error is not None:
            raise row.error
    return [row.canvas for row in rows]


def alone(model: Model, one: Asked) -> Tensor:
    denoiser = guided_by_fixed(model.denoiser(one.temperature, one.top_p), one)
    return last(model.frames(one.canvas, denoiser, one.sampler, one.steps, one.seed, one.options)).tokens


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_a_text_in_company_is_the_text_alone(name: str, sampler: str) -> None:
    model = model_of(name)
    wanted = asked(model, sampler)
    found = write_all(model, wanted, at_once=3)
    for canvas, one in zip(found, wanted, strict=True):
        assert torch.equal(canvas.tokens, alone(model, one))


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "unsupervised") for name in FAMILIES), ("mdlm", "standard"), ("duo", "standard")]
)
def test_a_guided_text_in_company_is_the_text_alone(name: str, kind: str) -> None:
    model = model_of(name)
    some = asked(model, "")
    wanted = [replace(one, guidance=weight, guidance_kind=kind) for one, weight in zip(some, [1.5, 0, 0.5, 2, 1])]
    found = write_all(model, wanted, at_once=4)
    for canvas, one in zip(found, wanted, strict=True):
        assert torch.equal(canvas.tokens, alone(model, one))
    assert any(not torch.equal(alone(model, one), alone(model, plain)) for one, plain in zip(wanted, some))


def test_a_call_that_memory_does_not_hold_is_made_in_parts() -> None:
    model = model_of("mdlm")
    engine, wanted = Engine(model), asked(model, "")
    trunk = engine.network.trunk

    def small(view: View) -> Tensor:
        if len(view.tokens) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return trunk(view)

    engine.network.trunk = small  # type: ignore[method-assign]
    rows = [engine.add(one) for one in wanted]
    while engine.rows:
        engine.step()
    assert engine.fits > 0
    engine.network.trunk = trunk  # type: ignore[method-assign]
    for row in rows:
        assert row.error is None and torch.equal(row.canvas.tokens, alone(model, row.asked))


@pytest.mark.parametrize("name", FAMILIES)
def test_row_of_a_batch_is_the_text_of_its_number(name: str) -> None:
    """The texts that `Model.sample` writes side by side, written one by one in the engine."""
    model = model_of(name)
    whole = model.canvas("ab", 4, 10)
    rows = last(model.frames(whole, model.denoiser(), "", 5, seed=3)).tokens
    one_by_one = [
        Asked(Canvas(whole.tokens[:1], whole.fixed[:1], torch.tensor([number])), "", 5, seed=3) for number in range(4)
    ]  # fmt: skip
    found = torch.cat([canvas.tokens for canvas in write_all(model, one_by_one, at_once=4)])
    assert torch.equal(found, rows)


def test_gradients_are_as_they_were_whoever_leaves() -> None:
    """A sampler that is stopped, or forgotten, in the middle switches nothing on or off for others."""
    model = model_of("mdlm")
    engine = Engine(model)
    rows = [engine.add(one) for one in asked(model, "")[:2]]
    engine.step()
    assert torch.is_grad_enabled()
    engine.remove(rows[0])
    del engine, rows
    gc.collect()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["ar", "mdlm", "duo", "esolm", "bd3lm"])
def test_rows_that_are_removed_change_no_other(name: str) -> None:
    model = model_of(name)
    wanted = asked(model, "")
    engine = Engine(model)
    rows = [engine.add(one) for one in wanted]
    for _ in range(3):
        engine.step()
    engine.remove(rows[0])
    engine.remove(rows[2])
    assert torch.is_grad_enabled(), "a sampler that is ended leaves nothing switched off"
    late = engine.add(wanted[0])
    while engine.rows:
        engine.step()
    assert not engine.pool.rows
    for row in (rows[1], rows[3], rows[4], late):
        assert torch.equal(row.canvas.tokens, alone(model, row.asked))


def test_a_text_that_fails_fails_alone() -> None:
    model = model_of("mdlm")
    engine, wanted = Engine(model), asked(model, "")
    poisoned = Asked(Canvas(torch.full((1, 9), 10**6), torch.ones(1, 9, dtype=torch.bool).tril(7), torch.tensor([0])))
    unknown = Asked(wanted[0].canvas, "ancestrl")
    rows = [engine.add(one) for one in [*wanted[:2], poisoned, unknown]]
    while engine.rows:
        engine.step()
    assert isinstance(rows[3].error, UserError) and "ancestral" in str(rows[3].error)
    assert isinstance(rows[2].error, IndexError)
    for row in rows[:2]:
        assert row.error is None and torch.equal(row.canvas.tokens, alone(model, row.asked))


def test_calls_are_shared() -> None:
    """As many calls of the network as the text that needs most, and not as all together."""
    model = model_of("mdlm")
    engine, calls = Engine(model), []
    trunk = engine.network.trunk
    engine.network.trunk = lambda view: calls.append(len(view.tokens)) or trunk(view)  # type: ignore[method-assign,func-returns-value]
    canvas = model.canvas("", 1, 16)
    rows = [Asked(Canvas(canvas.tokens, canvas.fixed, torch.tensor([n])), "first_hitting") for n in range(5)]
    for row in rows:
        engine.add(row)
    while engine.rows:
        engine.step()
    assert calls == [5] * 16


def test_frames_are_those_of_the_sampler() -> None:
    model = model_of("duo")
    one = asked(model, "")[1]
    engine = Engine(model)
    row, seen = engine.add(one), []
    while engine.rows:
        before = row.frames
        engine.step()
        seen += [row.canvas.tokens] * (row.frames > before)
    wanted = [frame.tokens for frame in islice(model.frames(one.canvas, model.denoiser(0.8), "", 7, 1), 20)]
    assert len(seen) == len(wanted) and all(map(torch.equal, seen, wanted))
