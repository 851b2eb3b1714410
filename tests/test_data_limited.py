"""The study of a small corpus read often: every run is scored into a file of its own, and cells are means over seeds."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import data_limited


def test_runs_of_two_budgets_have_scores_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of runs have points in them: mdlm-80k-1.76e10-s0."""
    scored: list[str] = []

    def run(command: list[str], **_: Any) -> None:
        scored.append(command[4])
        Path(command[-1]).write_text(json.dumps({"nats": float(len(scored))}))

    monkeypatch.setattr(subprocess, "run", run)
    args, names = Namespace(into=tmp_path), ["mdlm-80k-1.76e10-s0", "mdlm-80k-1.76e12-s0"]
    for _ in range(2):  # the second time they are read
        assert [data_limited.exact(args, {"run": name}) for name in names] == [1.0, 2.0]
    assert [Path(folder).name for folder in scored] == names


def test_cells_are_means_over_seeds_paired_with_ar() -> None:
    losses = {"ar": (2.0, 2.2), "mdlm": (2.1, 2.3)}
    rows = [{"arm": arm, "epochs": 3, "seed": s, "loss": own[s]} for arm, own in losses.items() for s in range(2)]
    ar, mdlm = data_limited.summary(rows)
    assert ar["loss"]["value"] == pytest.approx(2.1) and mdlm["above_ar"]["value"] == pytest.approx(0.1)
    assert mdlm["above_ar"]["high"] - mdlm["above_ar"]["low"] < 1e-6 < mdlm["loss"]["high"] - mdlm["loss"]["low"]
