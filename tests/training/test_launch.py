"""A run through Slurm, end to end, on a Slurm that is played by scripts: submit, preempt, requeue, finish."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("submitit")

from redraft.cli import overrides
from redraft.errors import UserError
from redraft.evaluation.run import carry_out, open_run, read_record
from redraft.training.journal import read_journal
from redraft.training.launch import FOLDER, launch, log_of, named, options_of, running, words_of
from tests.runs import corpus, tiny


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = tmp_path / "slurm"
    home.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(home))
    from tests.training import fake_slurm

    monkeypatch.setattr(fake_slurm, "HOME", home)
    fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path / "cache"))
    yield home
    for tasks in home.glob("*.tasks"):
        for task in tasks.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(task), 9)


def until(true: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def words(source: Path, into: Path, steps: int) -> list[str]:
    """`redraft train` as `tiny` has it."""
    settings = tiny(source, budget={"steps": steps})
    flags = [
        "--family", "mdlm", "--network.depth", "2", "--network.heads", "2", "--network.width", "16", "--network.cond", "8",
        "--data", str(source), "--length", "16", "--steps", str(steps), "--batch", "4", "--lr", "3e-3",
        "--train.threads", "1", "--precision", "float32", "--device", "cpu", "--train.save_every", str(steps),
        "--evaluate.rows", "8", "--evaluate.draws", "2", "--evaluate.batch", "8",
    ]  # fmt: skip
    assert settings.train.batch == 4
    return ["--into", str(into), *flags]


def test_a_job_is_submitted_preempted_requeued_and_finishes(slurm: Path, tmp_path: Path) -> None:
    """Two ranks. Asked to leave in the middle they save at their own step, and the job that Slurm starts anew goes on from
    there to the result of a run that was left alone."""
    source, into, steps = corpus(tmp_path / "prose"), tmp_path / "run", 600
    job = launch(words(source, into, steps), into, nodes=1, gpus_per_node=0, options={"tasks_per_node": 2})
    assert running(into) == job
    with pytest.raises(UserError, match=f"job {job} is at work on"):
        launch(words(source, into, steps), into, nodes=1, gpus_per_node=0)
    journal = into / "journal.jsonl"
    until(lambda: journal.exists() and len(read_journal(journal)) > 3, "the first steps")
    os.system(f"scancel {job} --signal SIGUSR2")
    until((slurm / "requeued").exists, "the requeue")
    left_at = read_journal(journal)[-1].step
    assert not (into / "record.json").exists() and left_at < steps
    until((into / "record.json").exists, "the end of the run")
    until(lambda: (slurm / f"{job}.state").read_text() == "COMPLETED", "the end of the job")
    assert running(into) is None
    assert [record.step for record in read_journal(journal)] == list(range(10, steps + 1, 10))
    config = tiny(source, budget={"steps": steps}, train={"save_every": steps})
    list(carry_out(open_run(config, tmp_path / "alone"), tmp_path / "alone"))
    alone, found = read_record(tmp_path / "alone"), json.loads((into / "record.json").read_text())
    # two ranks add up in another order than one: float32, 600 steps
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    assert found["timing"]["steps"] < steps  # the second start did not begin anew


def test_a_run_that_cannot_be_is_told_in_the_log_and_not_requeued(slurm: Path, tmp_path: Path) -> None:
    into = tmp_path / "run"
    job = launch(["--into", str(into), "--family", "mdml"], into, nodes=1, gpus_per_node=0)
    until(lambda: (slurm / f"{job}.state").read_text() == "FAILED", "the end of the job")
    assert "unknown family 'mdml'" in (into / FOLDER / f"{job}_0_log.err").read_text()
    assert not (slurm / "requeued").exists()


def test_the_job_asks_slurm_for_what_it_was_told(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SLURM_FULL", "1")
    options = options_of(["partition=gpu", "timeout_min=90", "cpus_per_task=8", "account=lab"])
    assert options == {"partition": "gpu", "timeout_min": 90, "cpus_per_task": 8, "account": "lab"}
    job = launch(["--help"], tmp_path / "run", nodes=4, gpus_per_node=8, options=options)
    script = (slurm / f"{job}.script").read_text()
    for flag in (
        "nodes=4",
        "ntasks-per-node=8",
        "gpus-per-node=8",
        "partition=gpu",
        "time=90",
        "account=lab",
        "signal=USR2@90",
    ):
        assert f"#SBATCH --{flag}" in script
    assert log_of(tmp_path / "run", job).parent == (tmp_path / "run" / FOLDER).resolve()
    assert running(tmp_path / "run") == job


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="name=value"):
        options_of(["partition"])
    assert named({"partition": "a", "nodes": 2, "slurm_qos": "b"}) == {
        "slurm_partition": "a",
        "nodes": 2,
        "slurm_qos": "b",
    }
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"Slurm does not take the job: .*srun"):
        launch(["--help"], tmp_path / "run", nodes=1, gpus_per_node=8)


def test_a_task_is_given_the_command_that_was_typed() -> None:
    """The words parse back to the same settings, lists of tables and text that looks like a number among them."""
    given = {
        "family": {"name": "mdlm", "objective": "nelbo"},
        "data": {"mixture": [{"source": "a b.jsonl", "weight": 0.5}, {"source": "c"}], "tokenizer": "007"},
        "train": {"lr": 3e-4, "compile": True},
    }
    words = words_of("books", Path("runs/a"), "runs/b", ["wandb"], given)
    assert words[:7] == ["books", "--into", "runs/a", "--from", "runs/b", "--track", "wandb"]
    assert overrides(words[7:]) == given


def test_a_setting_that_slurm_has_not_is_named(slurm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="partitoin"):
        launch(["--help"], tmp_path / "run", 1, 8, {"partitoin": "gpu"})
