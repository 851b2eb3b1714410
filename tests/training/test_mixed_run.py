"""A run over phases of mixtures, within documents: every step the same on any ranks, and after any resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from redraft.config import RunConfig, merge, validated
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out, read_record
from redraft.training.journal import read_journal
from tests.small_runs import tiny


@pytest.fixture
def letters(tmp_path: Path) -> list[str]:
    out = []
    for letter in "abc":
        path = tmp_path / f"{letter}.jsonl"
        path.write_text("".join(json.dumps({"text": letter * (5 + i % 7)}) + "\n" for i in range(200)))
        out.append(str(path))
    return out


def configured(letters: list[str], family: str = "mdlm", **data: Any) -> RunConfig:
    a, b, c = letters
    phases = [
        {"until": 0.5, "mixture": [{"source": a, "weight": 0.7}, {"source": b, "weight": 0.3}]},
        {"until": 1.0, "mixture": [{"source": c}]},
    ]
    base = tiny(Path("stdlib"), data={"format": "text", "phases": phases, **data}).model_dump()
    return validated(RunConfig, merge(base, {"family": family}))


@pytest.mark.parametrize("mask", [False, True], ids=["cross", "within"])
def test_a_run_over_phases_is_interrupted_and_ends_in_the_same_bits(
    letters: list[str], tmp_path: Path, mask: bool
) -> None:
    config = configured(letters, intra_document_mask=mask)
    list(carry_out(open_run(config, tmp_path / "whole"), tmp_path / "whole"))
    run = carry_out(open_run(config, tmp_path / "broken"), tmp_path / "broken")
    next(run)
    run.close()
    list(carry_out(open_run(config, tmp_path / "broken"), tmp_path / "broken"))
    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    assert read_record(whole)["loss"] == read_record(broken)["loss"]
    losses = [[record.loss for record in read_journal(folder / "journal.jsonl")] for folder in (whole, broken)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("family", ["ar", "mdlm", "duo", "esolm", "bd3lm"])
def test_documents_change_what_every_family_learns(letters: list[str], tmp_path: Path, family: str) -> None:
    losses = {}
    for mask in (False, True):
        folder = tmp_path / str(mask)
        list(carry_out(open_run(configured(letters, family, intra_document_mask=mask), folder), folder))
        losses[mask] = read_record(folder)["loss"]
    assert losses[False] != losses[True]
