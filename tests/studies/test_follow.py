"""A study that is carried out where there is no terminal is never silent for long."""

from __future__ import annotations

from itertools import count

import pytest

from redraft.commands import study_queue
from redraft.commands.study_queue import SILENCE, follow
from redraft.planning.study import plan_study
from redraft.studies.execute import Status


def test_a_line_tells_what_is_under_way_after_a_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = count(step=SILENCE / 10)
    monkeypatch.setattr(study_queue.time, "monotonic", lambda: next(clock))
    arm = {"families": ["ar"], "sizes": ["6k"], "flops": [1e10]}
    study = plan_study({"title": "x", "base": {"network": {"cond": 8}, "data": {"length": 64}}, "arm": [arm]})
    (run,) = study.runs
    states = [[Status(run, "running", run.budget.steps // 2)]] * 30
    follow(study, iter([*states, [Status(run, "done", run.budget.steps, 2.0)]]), quiet=False)
    lines = capsys.readouterr().out.splitlines()
    assert 4 <= len(lines) <= 10 and all(run.name in line for line in lines)
    assert all("left" in line for line in lines[:-1]) and "validation loss 2.0" in lines[-1]
