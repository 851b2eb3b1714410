"""What to try with the models that a study has just trained: the commands that race them and that serve them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from redraft.files import read_json
from redraft.planning.study import JUDGE


def best(folder: Path) -> dict[str, Path]:
    """The run of lowest loss of each family's own arm, by family, and the judge's under `JUDGE`, as far as they are done."""
    from redraft.runs.record import RECORD
    from redraft.studies.execute import RUNS

    found: dict[str, tuple[float, Path]] = {}
    for path in sorted((folder / RUNS).glob(f"*/{RECORD}")):
        record: dict[str, Any] = read_json(path)
        if record["arm"] in (record["family"], JUDGE):
            found[record["arm"]] = min(found.get(record["arm"], (record["loss"], path)), (record["loss"], path))
    return {arm: path.parent for arm, (_, path) in found.items()}


def next_commands(folder: Path) -> list[str]:
    """`redraft race` and `redraft serve` of those; none where fewer than two families are done."""
    places = best(folder)
    judge = places.pop(JUDGE, None)
    if len(places) < 2:
        return []
    named = [f"{family}={place}" for family, place in places.items()]
    race = ["redraft", "race", *named, "--steps", "4,16", *(["--evaluator", str(judge)] if judge else [])]
    return [shlex.join(race), shlex.join(["redraft", "serve", *named])]


def next_lines(folder: Path) -> list[str]:
    """The same in sentences."""
    commands = next_commands(folder)
    if not commands:
        return []
    return [
        "",
        "Race the best of each family:",
        f"  {commands[0]}",
        "Watch them write, at http://127.0.0.1:8000:",
        f"  {commands[1]}",
    ]
