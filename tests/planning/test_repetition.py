"""How often a budget reads its text: told by the plan where tokens are at hand, and by training as the record has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from redraft.cli import main
from redraft.config import DataConfig
from redraft.planning.repetition import repetition, repetition_foreseen
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out, read_record
from tests.small_runs import corpus, tiny


def test_the_plan_says_what_the_record_will(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = corpus(tmp_path / "prose")
    config = tiny(source, budget={"steps": 4})
    assert repetition_foreseen(config.data, 1000).epochs is None  # nothing is tokenised for a plan
    for _ in carry_out(open_run(config, tmp_path / "run"), tmp_path / "run"):
        pass
    record = read_record(tmp_path / "run")
    found = repetition_foreseen(config.data, record["tokens"])
    assert found.tokens == record["data"]["tokens"] and found.epochs == pytest.approx(record["data"]["epochs"])
    main(["plan", "--data", config.data.source, "--data.tokenizer", config.data.tokenizer, "--steps", "4", "--json"])
    assert json.loads(capsys.readouterr().out)["repetition"]["tokens"] == found.tokens


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        (500, "none, 0.5 of 1k tokens to train on."),
        (3000, "1k tokens to train on, read 3 times."),
        (9000, "1k tokens to train on, read 9 times; beyond 4, "),
    ],
)
def test_a_sentence_says_how_often(tokens: int, told: str) -> None:
    assert repetition(tokens, 1000).sentence.startswith(f"Repetition: {told}")


def test_what_cannot_be_counted_is_said(tmp_path: Path) -> None:
    sentence = repetition_foreseen(DataConfig(source=str(tmp_path / "none.txt")), 10).sentence
    assert sentence.startswith("Repetition: not counted (") and "none.txt" in sentence
