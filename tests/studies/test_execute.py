"""A study on disk: what is recorded is skipped, what was killed goes on, and ends in the same bits."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from redraft.cli import main
from redraft.errors import UserError
from redraft.planning.study import Study, plan_study, study_sentences
from redraft.registry import FAMILIES
from redraft.studies.execute import FORKS, Status, claimed, execute, fork, open_study, read_study, status, work
from redraft.studies.workers import Jobs, Processes
from tests.processes import ended, redraft, start
from tests.small_runs import corpus


def recipe(source: Path, flops: float = 4e8) -> dict[str, Any]:
    return {
        "title": "two arms in miniature",
        "workers": 2,
        "base": {
            "network": {"cond": 8},
            "data": {"source": str(source), "length": 16},
            "train": {"batch": 4, "threads": 1, "precision": "float32", "device": "cpu", "save_every": 10},
            "evaluate": {"rows": 8, "draws": 2, "batch": 8},
        },
        "arm": [{"families": ["ar", "mdlm"], "sizes": ["6k"], "flops": [flops], "seeds": [0, 1]}],
    }


def artefacts(folder: Path) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Weights and records of every run, without what tells of this execution."""
    out = {}
    for run in sorted((folder / "runs").iterdir()):
        record = json.loads((run / "record.json").read_text())
        kept = {k: v for k, v in record.items() if k not in ("timing", "machine", "versions", "git")}
        out[run.name] = (run / "model.safetensors").read_bytes(), kept
    return out


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


def finish(table: dict[str, Any], folder: Path) -> None:
    """By a worker in this process."""
    study = open_study(table, folder)
    work(folder, guarded=False)
    assert {s.state for s in status(study, folder)} == {"done"}


class Forks(Processes):
    """Workers that the driver forks, since it has imported torch, and not programs that import it anew."""

    def _start(self, number: int) -> Any:
        return Fork(self.folder)


class Fork:
    """A worker as `Processes` uses it."""

    def __init__(self, folder: Path):
        self.process = multiprocessing.get_context("fork").Process(target=Fork.run, args=(folder,))
        self.process.start()
        self.poll, self.terminate, self.wait = lambda: self.process.exitcode, self.process.terminate, self.process.join

    @staticmethod
    def run(folder: Path) -> None:
        os.setsid()
        main(["study", "work", str(folder)])


def drive(folder: Path) -> None:
    study = read_study(folder)
    for _ in execute(study, folder, lambda: Forks(folder, study.config.workers), poll=0.05):
        pass


def settle(study: Study, folder: Path) -> list[Status]:
    """By workers in processes of their own."""
    assert ended(start(drive, folder)) == 0
    return status(study, folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_study_of_any_family_reads_back_as_it_was_opened(family: str, source: Path, tmp_path: Path) -> None:
    """Options whose default is None among them: TOML has no word for it."""
    table = recipe(source)
    table["arm"][0]["families"] = [family]
    opened = open_study(table, tmp_path / "study")
    assert read_study(tmp_path / "study") == opened
    assert open_study(table, tmp_path / "study") == opened


def test_study_killed_at_random_moments_continues_to_the_same_bits(source: Path, tmp_path: Path) -> None:
    """SIGKILL of the driver, of a worker, and of the driver again; workers do not outlive it for long."""
    table = recipe(source, 2e8)
    finish(table, tmp_path / "whole")
    study = open_study(table, tmp_path / "broken")
    rng = random.Random(5)
    for victim in ("driver", "worker", "driver"):
        driver = start(drive, tmp_path / "broken")
        _until(lambda: any((tmp_path / "broken" / "runs").glob("*/journal.jsonl")))
        time.sleep(rng.uniform(0.0, 0.3))
        if victim == "worker":
            for child in _children(driver.pid)[:1]:
                os.kill(child, signal.SIGKILL)
        else:
            driver.kill()
        ended(driver)
        _until(lambda: all(s.state != "running" for s in status(study, tmp_path / "broken")))
    finish(table, tmp_path / "broken")
    assert artefacts(tmp_path / "broken") == artefacts(tmp_path / "whole")


def reusing(source: Path, families: list[Any], budgets: list[float]) -> dict[str, Any]:
    table = recipe(source)
    table["base"]["train"] |= {"schedule": "wsd", "warmup": 3, "ema": 0.9}
    table["arm"] = [{"families": families, "sizes": ["6k"], "flops": budgets, "reuse": True}]
    return table


def without_branch(found: dict[str, tuple[bytes, dict[str, Any]]]) -> dict[str, tuple[bytes, dict[str, Any]]]:
    return {name: (weights, {**record, "branch": None}) for name, (weights, record) in found.items()}


def test_branch_off_a_trunk_is_the_run_it_stands_for(source: Path, tmp_path: Path) -> None:
    """Bit for bit: weights, moving average, record; every family that a branch can serve."""
    table = reusing(source, [{"name": name} for name in FAMILIES if name != "mdlm"], [4e7, 8e7])
    table["arm"] += reusing(source, ["mdlm"], [4e7, 8e7, 1.6e8])["arm"]  # two branches of one trunk
    finish(table, tmp_path / "branched")
    for arm in table["arm"]:
        arm["reuse"] = False
    finish(table, tmp_path / "alone")
    branched, alone = artefacts(tmp_path / "branched"), artefacts(tmp_path / "alone")
    assert sum(record["branch"] is not None for _, record in branched.values()) == len(FAMILIES) + 1
    assert without_branch(branched) == without_branch(alone)
    assert not any((tmp_path / "branched" / FORKS).iterdir())


def test_branch_trains_its_own_steps_alone(source: Path, tmp_path: Path) -> None:
    finish(reusing(source, ["ar"], [1e8, 4e8]), tmp_path / "study")
    study = read_study(tmp_path / "study")
    run = next(run for run in study.runs if run.trunk)
    record = json.loads((tmp_path / "study" / "runs" / run.name / "record.json").read_text())
    assert record["timing"]["steps"] == run.own.steps == record["steps"] - run.at < 0.25 * record["steps"]
    assert record["flops"] == run.budget.flops["blocks+head"]  # what it is worth, not what it took


def test_branched_study_killed_at_random_moments_continues_to_the_same_bits(source: Path, tmp_path: Path) -> None:
    table = reusing(source, ["mdlm", "duo"], [1e8, 2e8, 4e8])
    finish(table, tmp_path / "whole")
    open_study(table, tmp_path / "broken")
    rng = random.Random(3)
    for _ in range(4):
        before, worker = steps(tmp_path / "broken"), redraft("study", "work", tmp_path / "broken")
        _until(lambda before=before, worker=worker: steps(tmp_path / "broken") > before or not worker.is_alive())
        time.sleep(rng.uniform(0.0, 0.5))
        worker.kill()
        ended(worker)
    finish(table, tmp_path / "broken")
    assert artefacts(tmp_path / "broken") == artefacts(tmp_path / "whole")


def steps(folder: Path) -> int:
    return sum(one.step for one in status(read_study(folder), folder))


def test_branch_whose_fork_is_lost_starts_afresh(source: Path, tmp_path: Path) -> None:
    table = reusing(source, ["ar"], [1e8, 4e8])
    study = open_study(table, tmp_path / "study")
    branch = next(run for run in study.runs if run.trunk)
    finish(table, tmp_path / "study")
    expected = artefacts(tmp_path / "study")
    shutil.rmtree(tmp_path / "study" / "runs" / branch.name)
    assert not fork(tmp_path / "study", branch).exists()
    finish(table, tmp_path / "study")
    assert artefacts(tmp_path / "study") == expected


def test_reuse_is_refused_where_it_would_not_be_exact(source: Path) -> None:
    with pytest.raises(UserError, match="'cosine' knows the end"):
        plan_study(reusing(source, ["ar"], [1e8, 4e8]) | {"base": recipe(source)["base"]})
    paced = [{"name": "duo", "objective": "curriculum", "gamma_low": -3.5, "gamma_high": -1.75}]
    with pytest.raises(UserError, match="depends on the share of the budget"):
        plan_study(reusing(source, paced, [1e8, 4e8]))


def test_plan_says_what_reuse_saves(source: Path) -> None:
    study = plan_study(reusing(source, ["ar"], [1e8, 2e8, 4e8]))
    steps = {run.name: run.budget.steps for run in study.runs}
    own, alone = sum(run.own.steps for run in study.runs), sum(steps.values())
    told = next(sentence for sentence in study_sentences(study, 1e9) if "branch off" in sentence)
    assert f"({1 - own / alone:.0%})" in told and "2 of the runs branch off 1" in told
    # wsd decays over a fifth: a branch keeps four fifths of its steps
    assert all(abs(run.at / run.budget.steps - 0.8) < 2 / run.budget.steps for run in study.runs if run.trunk)


def test_a_run_that_diverges_is_marked_with_its_reason_and_not_tried_again(source: Path, tmp_path: Path) -> None:
    table = recipe(source, 2e8)
    table["arm"] += [{"families": ["ar"], "sizes": ["6k"], "flops": [2e8], "name": "wild", "set": {"train": WILD}}]
    study = open_study(table, tmp_path / "study")
    states = {s.run.arm: s for s in settle(study, tmp_path / "study")}
    assert states["wild"].state == "diverged" and "lower train.lr" in states["wild"].why
    assert {s.state for arm, s in states.items() if arm != "wild"} == {"done"}
    stamp = (tmp_path / "study" / "runs" / states["wild"].run.name / "error.json").stat().st_mtime_ns
    settle(study, tmp_path / "study")
    assert (tmp_path / "study" / "runs" / states["wild"].run.name / "error.json").stat().st_mtime_ns == stamp


WILD = {"lr": 1e30, "clip": 1e30, "warmup": 0.0}


def test_a_run_that_keeps_killing_its_worker_is_given_up(source: Path, tmp_path: Path) -> None:
    study = open_study(recipe(source, 3e7), tmp_path / "study")
    place = tmp_path / "study" / "runs" / study.runs[0].name
    place.mkdir(parents=True)
    (place / ".tries.json").write_text('{"step": 0, "tries": 3}')
    assert ended(redraft("study", "work", tmp_path / "study")) == 0
    states = status(study, tmp_path / "study")
    assert [s.state for s in states] == ["died"] + ["done"] * (len(states) - 1)
    assert {s.state for s in settle(study, tmp_path / "study")} == {"done"}  # asked again, it is tried again


def test_failures_are_forgotten_before_workers_start(source: Path, tmp_path: Path) -> None:
    """A worker that started earlier could leave, since nothing was left to take, or count one try more than there are."""
    study = open_study(recipe(source, 3e7), tmp_path / "study")
    place = tmp_path / "study" / "runs" / study.runs[0].name
    place.mkdir(parents=True)
    (place / "error.json").write_text('{"kind": "died", "error": "its worker died"}')
    (place / ".tries.json").write_text('{"step": 0, "tries": 3}')
    seen = []

    class Started(Forks):
        def __init__(self) -> None:
            seen.extend(file.name for file in place.iterdir())
            super().__init__(tmp_path / "study", 0)

    next(execute(study, tmp_path / "study", Started))
    assert not seen


def test_a_worker_that_is_asked_to_end_leaves_its_state(source: Path, tmp_path: Path) -> None:
    study = open_study(recipe(source, 4e9), tmp_path / "study")
    worker = redraft("study", "work", tmp_path / "study")
    _until(lambda: any((tmp_path / "study" / "runs").glob("*/journal.jsonl")))
    _until(lambda: any(s.step > 0 for s in status(study, tmp_path / "study")))
    worker.terminate()
    assert ended(worker) == 0
    [state] = (tmp_path / "study" / "runs").glob("*/state.safetensors")
    assert not (state.parent / ".tries.json").exists()
    with safe_open(state, "pt") as file:
        assert int(file.metadata()["step"]) == max(s.step for s in status(study, tmp_path / "study"))


def test_jobs_work_on_the_queue_and_outlive_the_driver(source: Path, tmp_path: Path) -> None:
    """submitit's own processes stand in for Slurm's."""
    study = open_study(recipe(source, 3e7), tmp_path / "study")
    jobs = Jobs(tmp_path / "study", 1, {"timeout_min": 5}, cluster="local")
    next(execute(study, tmp_path / "study", lambda: jobs, poll=0.1))  # a look, then the driver leaves
    assert jobs.jobs[0].result() is None
    assert {s.state for s in status(study, tmp_path / "study")} == {"done"}


def test_how_a_study_is_carried_out_may_change(source: Path, tmp_path: Path) -> None:
    open_study(recipe(source), tmp_path / "study")
    open_study(recipe(source) | {"workers": 1, "gpus": 2}, tmp_path / "study")
    assert read_study(tmp_path / "study").config.workers == 1


def _until(happens: Any) -> None:
    deadline = time.monotonic() + 60
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.02)


def _children(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in tasks.read_text().split()] if tasks.exists() else []


def test_recorded_runs_are_skipped(source: Path, tmp_path: Path) -> None:
    finish(recipe(source, 3e7), tmp_path / "study")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "study").glob("runs/*/record.json")}
    finish(recipe(source, 3e7), tmp_path / "study")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "study").glob("runs/*/record.json")} == before


def test_run_is_claimed_by_one_worker_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "run") as first:
        assert first and ended(start(claim, tmp_path / "run")) == int(False)
    assert ended(start(claim, tmp_path / "run")) == int(True)


def claim(run: Path) -> None:
    with claimed(run) as mine:
        sys.exit(int(mine))


def test_failed_run_is_named_and_the_others_go_on(source: Path, tmp_path: Path) -> None:
    table = recipe(source, 3e7)
    study = open_study(table, tmp_path / "study")
    stray = tmp_path / "study" / "runs" / study.runs[0].name
    stray.mkdir(parents=True)
    (stray / "thesis.txt").write_text("mine")
    states = settle(study, tmp_path / "study")
    failed = [s for s in states if s.state == "failed"]
    assert [s.run.name for s in failed] == [study.runs[0].name] and "holds no redraft run" in failed[0].why
    assert sum(s.state == "done" for s in states) == len(states) - 1


def test_folder_of_another_study_is_refused(source: Path, tmp_path: Path) -> None:
    open_study(recipe(source), tmp_path / "study")
    assert read_study(tmp_path / "study").runs == open_study(recipe(source), tmp_path / "study").runs
    open_study(recipe(source, 6e8), tmp_path / "study")  # nothing was begun: a recipe may still be mended
    open_study(recipe(source), tmp_path / "study")
    (tmp_path / "study" / "runs" / "begun").mkdir()
    with pytest.raises(UserError, match="holds another study"):
        open_study(recipe(source, 5e8), tmp_path / "study")
    with pytest.raises(UserError, match="holds no study"):
        read_study(tmp_path)
    assert {s.state for s in status(read_study(tmp_path / "study"), tmp_path / "study")} == {"waiting"}


def test_plan_counts_every_combination_at_equal_flops(source: Path) -> None:
    study = plan_study(recipe(source))
    assert len(study.runs) == 4 and len({run.name for run in study.runs}) == 4
    for run in study.runs:
        spent = run.budget.flops["blocks+head"]
        assert 4e8 - spent < spent / run.budget.steps  # the budget, less than a step short
    assert any("4 runs" in sentence for sentence in study_sentences(study, 1e9))
