"""Every claim that has a verdict is measured by one command, and its commands are ones that redraft takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks import claims
from benchmarks.claims import HOURS, ROWS, WEIGHTS, chosen, complete

from redraft.cli import parsed
from redraft.files import write_json

ROOT = Path(__file__).parent.parent
DATA, INTO = Path("data"), Path("into")


def test_every_row_that_was_measured_has_a_command() -> None:
    rows = re.findall(
        r"^\| ([BSM]\d) \|.*$", (ROOT / "docs/results/claims.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    unmeasured = {"B8", "S6", "S7"}  # they need a GPU
    assert set(rows) - unmeasured == set(ROWS) and unmeasured <= set(rows)
    assert set(HOURS) == set(ROWS.values())


@pytest.mark.parametrize("row", ROWS)
def test_its_commands_are_taken(row: str) -> None:
    commands = list(ROWS[row](DATA, INTO))
    assert commands
    for first, *rest in commands:
        if first.startswith("benchmarks/"):
            assert (ROOT / first).exists()
        else:
            parsed(first, rest)
        assert all(Path(part).exists() for part in complete([first, *rest])[1:] if "benchmarks" in part)


def test_the_weight_is_chosen_on_validation(tmp_path: Path) -> None:
    """The highest accuracy, the smallest weight of equals; 0 is not a choice."""
    place = tmp_path / "books-mask_count"
    assert chosen(place) == WEIGHTS[0]
    for weight, accuracy in zip(("0", *WEIGHTS), (0.9, 0.3, 0.4, 0.4, 0.2), strict=True):
        scores = {"tasks": {"continuation_choice": {"metrics": {"acc": {"value": accuracy}}}}}
        write_json(Path(f"{place}-valid-{weight}.json"), scores)
    assert chosen(place) == "1"


def test_scores_that_are_there_are_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    there = tmp_path / "there.json"
    there.touch()
    commands = [
        ["eval", "run", "--out", str(there)],
        ["eval", "run", "--out", str(tmp_path / "new.json")],
        ["list", "keys"],
    ]
    monkeypatch.setitem(claims.ROWS, "S3", lambda *_: iter(commands))
    monkeypatch.setitem(claims.HOURS, claims.ROWS["S3"], 0.1)
    monkeypatch.setattr(claims.subprocess, "run", lambda command, check: ran.append(command))
    flags = ["claims.py", "S3", "--data-dir", str(DATA), "--into", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*flags, "--dry"])
    claims.main()
    assert not ran
    monkeypatch.setattr("sys.argv", flags)
    claims.main()
    assert [command[1:4] for command in ran] == [["-m", "redraft", "eval"], ["-m", "redraft", "list"]]
