"""Numbers from outside have ranges: every key of a run and of a study, every flag; beyond them is one line, and no folder."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from redraft.cli import COMMANDS, Parser, main
from redraft.config import RunConfig, validated
from redraft.errors import UserError
from redraft.numbers import SEEDS
from redraft.planning.study import StudyConfig
from redraft.text.shards.packing import permuted

HUGE = 10**400  # no float either


def numbers(kind: Any, place: str, marks: tuple[Any, ...] = ()) -> Iterator[tuple[str, str, set[str]]]:
    """Every number below a type: where it is, its kind, and the ends of its range that its constraints name."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield from numbers(field.annotation, f"{place}.{name}", tuple(field.metadata))
    elif kind in (int, float):
        said = {end for mark in marks for end in ("gt", "ge", "lt", "le") if getattr(mark, end, None) is not None}
        yield place, kind.__name__, said
    else:
        extra = tuple(getattr(kind, "__metadata__", ()))
        constraints = tuple(m for mark in extra for m in (mark, *getattr(mark, "metadata", ())))
        for part in get_args(kind):
            yield from numbers(part, place, marks + constraints)


CONFIGURED = [n for model in (RunConfig, StudyConfig) for n in numbers(model, model.__name__)]
ENDLESS = {"RunConfig.train.clip"}  # inf leaves the gradient as it is


def test_the_walk_finds_the_numbers_of_lists_and_parts() -> None:
    places = {place for place, *_ in CONFIGURED}
    assert {"RunConfig.seed", "RunConfig.train.completep.width", "StudyConfig.arm.seeds"} <= places
    assert {"StudyConfig.arm.grid.centre.flops", "RunConfig.data.phases.mixture.weight"} <= places


@pytest.mark.parametrize(("place", "kind", "ends"), CONFIGURED, ids=[place for place, *_ in CONFIGURED])
def test_every_number_of_a_configuration_states_its_range(place: str, kind: str, ends: set[str]) -> None:
    assert ends & {"gt", "ge"}
    assert ends & {"lt", "le"} or place in ENDLESS


@pytest.mark.parametrize("verb", COMMANDS)
def test_no_flag_takes_a_number_without_a_range(verb: str) -> None:
    parser = Parser(prog=verb)
    importlib.import_module(f"redraft.commands.{verb}").arguments(parser)
    assert [action.dest for action in parser._actions if action.type in (int, float)] == []
    for action in parser._actions:
        if callable(action.type) and action.type.__module__ == "redraft.numbers":
            for text in (str(HUGE), "-" + str(HUGE), "nan", "1e999", "word"):
                with pytest.raises(argparse.ArgumentTypeError, match="must be"):
                    action.type(text)


@pytest.mark.parametrize("seed", [SEEDS[0] - 1, SEEDS[1] + 1, HUGE])
def test_a_seed_of_more_than_64_bits_is_refused_before_the_folder_is_claimed(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--into", str(tmp_path / "x"), "--steps", "1", "--seed", str(seed)])
    assert stopped.value.code == 2 and "seed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_the_outermost_seeds_reach_every_generator(seed: int) -> None:
    import numpy as np
    import torch

    torch.Generator().manual_seed(seed)
    at = np.arange(8)
    assert sorted(permuted(at, np.zeros_like(at), 8, seed).tolist()) == at.tolist()


@pytest.mark.parametrize("key", ["network.width", "data.length", "budget.steps", "budget.flops", "train.batch", "seed"])
def test_a_number_beyond_all_bounds_is_one_line(key: str) -> None:
    part, _, name = key.rpartition(".")
    with pytest.raises(UserError, match=key):
        validated(RunConfig, {part: {name: HUGE}} if part else {name: HUGE})
