"""The commands that the demo names at its end: they parse, and the models that they name are there."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import ModuleType

from redraft.commands import race, serve
from redraft.commands.demo_next import next_commands, next_lines
from redraft.commands.named import named
from redraft.files import write_json
from redraft.planning.study import JUDGE
from tests.hub.models import folder

RUNS = {
    "ar-a": ("ar", "ar", 2.0),
    "ar-b": ("ar", "ar", 1.0),
    "mdlm-a": ("mdlm", "mdlm", 2.5),
    "judge-a": (JUDGE, "ar", 0.5),
}
RUNS |= {"mdlm-nelbo": ("mdlm-nelbo", "mdlm", 0.1)}


def study(into: Path) -> Path:
    for name, (arm, family, loss) in RUNS.items():
        place = folder(into / "runs" / name, family, "dit")
        write_json(place / "record.json", {"name": name, "arm": arm, "family": family, "loss": loss})
    return into


def test_the_best_of_each_family_race_and_are_served(tmp_path: Path) -> None:
    place = study(tmp_path / "a demo")
    commands = [shlex.split(command) for command in next_commands(place)]
    assert [words[:2] for words in commands] == [["redraft", "race"], ["redraft", "serve"]]
    for module, words in zip((race, serve), commands, strict=True):
        options = parsed(module, words)
        wanted = {family: place / "runs" / name for family, name in {"ar": "ar-b", "mdlm": "mdlm-a"}.items()}
        assert named(options.models) == wanted
    assert Path(parsed(race, commands[0]).evaluator) == place / "runs" / "judge-a"
    assert all(command in "\n".join(next_lines(place)) for command in next_commands(place))


def parsed(module: ModuleType, words: list[str]) -> Namespace:
    parser = ArgumentParser()
    module.arguments(parser)
    return parser.parse_args(words[2:])


def test_where_nothing_is_done_nothing_is_named(tmp_path: Path) -> None:
    assert next_commands(tmp_path) == [] == next_lines(tmp_path)
