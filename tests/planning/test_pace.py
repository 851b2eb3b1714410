"""How long a run takes is told by its own network: scoring counts, widths and threads matter, and first steps correct it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from redraft.config import RunConfig, merge, validated
from redraft.network.flops import training_flops_per_token
from redraft.planning import pace
from redraft.planning.budget import Budget, plan_run
from redraft.planning.pace import FORWARD_AND_BACK, cpu_rate, scoring_flops, seconds


def planned(**over: Any) -> tuple[RunConfig, Budget]:
    base = {"family": "mdlm", "network": {"size": "14k"}, "budget": {"steps": 10}, "data": {"length": 64}}
    config = validated(RunConfig, merge(base, over))
    return config, plan_run(config, 257)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part of a block takes a second."""
    monkeypatch.setattr(pace, "_timed", lambda part: 1.0)
    monkeypatch.setattr(pace, "slowness", lambda: 1.0)
    monkeypatch.setattr(pace, "available", lambda: 4)


def test_scoring_is_passes_forward_over_the_rows_for_each_draw() -> None:
    for family, draws in (("ar", 1), ("mdlm", 5), ("bd3lm", 5)):
        config, budget = planned(family=family, evaluate={"rows": 30, "draws": 5})
        per_token = training_flops_per_token(budget.shape, 64, "full", 2.0 if family == "bd3lm" else 1.0)
        assert scoring_flops(config, budget) == pytest.approx(30 * 64 * draws * per_token / FORWARD_AND_BACK)


@pytest.mark.usefixtures("clock")
def test_threads_share_the_cores_and_runs_at_a_time_the_rest() -> None:
    _, budget = planned()
    assert cpu_rate([budget], 2) == pytest.approx(2 * cpu_rate([budget], 1))
    assert cpu_rate([budget], 0) == cpu_rate([budget], 4) == cpu_rate([budget], 99)
    assert (
        cpu_rate([budget], 1, 4) == pytest.approx(4 * cpu_rate([budget], 1)) == pytest.approx(cpu_rate([budget], 1, 8))
    )


@pytest.mark.usefixtures("clock")
def test_the_rate_of_several_runs_is_that_of_their_work_over_their_time() -> None:
    budgets = [planned(network={"size": size})[1] for size in ("14k", "154k")]
    apart = sum(budget.flops["full"] / cpu_rate([budget]) for budget in budgets)
    assert sum(b.flops["full"] for b in budgets) / cpu_rate(budgets) == pytest.approx(apart)
    assert cpu_rate(budgets[:1]) != pytest.approx(cpu_rate(budgets[1:]))
    assert seconds(budgets, 1e9) > sum(b.flops["full"] for b in budgets) / 1e9


@pytest.mark.usefixtures("clock")
def test_a_study_lasts_as_long_as_its_longest_run() -> None:
    """Eight runs at a time share the rate of eight devices; one that outlasts the others has but its own."""
    short, long = (planned(network={"size": size})[1] for size in ("14k", "154k"))
    alone, both = seconds([long], 1e7), seconds([short, long], 1e7)
    assert seconds([short, long], 8e7, 8) == pytest.approx(alone, rel=0.01)  # but for the overhead of steps
    assert seconds([short, long], 1e7, 8, devices=1) == pytest.approx(both, rel=0.01)
    assert seconds([long] * 8, 8e7, 8) == pytest.approx(alone, rel=0.01)


def test_of_many_networks_few_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = list[int]()
    monkeypatch.setattr(pace, "_rate", lambda shape, *rest: float(timed.append(shape.width) or shape.width))
    budgets = [planned(network={"size": f"{size}M"})[1] for size in (1, 3, 6, 20, 50, 100, 200)]
    cpu_rate(budgets)
    widths = [budget.shape.width for budget in budgets]
    assert len(timed) == 4 and {widths[0], widths[-1]} <= set(timed)


@pytest.mark.parametrize("block", ["dit", "llama"])
@pytest.mark.parametrize("size", ["14k", "1B"])
def test_any_network_is_timed_in_a_moment(block: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MOMENT", 0.0)
    monkeypatch.setattr(pace, "PRODUCTS", 1e7)
    assert cpu_rate([planned(network={"size": size, "block": block}, data={"length": 2048})[1]]) > 0


def test_first_steps_say_how_long_the_others_take_and_scoring_at_their_rate() -> None:
    from redraft.commands.train import pace_sentence, time_left

    config, budget = planned(evaluate={"rows": 64, "draws": 3})

    class Setup:
        pass

    setup: Any = Setup()
    setup.config, setup.budget = config, budget
    per_row = 2.0 / config.train.batch / FORWARD_AND_BACK  # seconds of a pass forward, at 2 s a step
    assert time_left(setup, 4, 2.0) == pytest.approx(6 * 2.0 + 64 * 3 * per_row)
    assert pace_sentence(setup, 4, 2.0, 3).endswith("from step 4 on, scoring included (measured on 3 steps).")


def test_train_says_both(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MOMENT", 0.0)
    from redraft.cli import main
    from tests.small_runs import corpus

    flags = [
        "--data",
        str(corpus(tmp_path / "prose")),
        "--length",
        "16",
        "--size",
        "3.1k",
        "--steps",
        "30",
        "--batch",
        "2",
    ]
    flags += ["--evaluate.rows", "4", "--train.device", "cpu", "--train.threads", "1"]
    main(["train", "--into", str(tmp_path / "run"), *flags])
    said = capsys.readouterr().out
    assert "of training and" in said and "measured on this CPU" in said and "(measured on 10 steps)" in said
