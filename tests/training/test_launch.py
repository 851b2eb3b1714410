"""A run through Slurm, end to end, on a Slurm that is played by scripts: submit, preempt, requeue, finish."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("submitit")

from redraft.cli import main, overrides
from redraft.errors import UserError
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out, read_record
from redraft.training.distributed.launch import FOLDER, launch, log_of, named, options_of, running, settings, words_of
from redraft.training.journal import read_journal
from tests.small_runs import corpus, tiny


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


def until(true: Callable[[], bool], what: str, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def words(source: Path, into: Path, steps: int) -> list[str]:
    """`redraft train` as `tiny` has it, in float64: in float32 600 steps on two ranks part from those of one."""
    settings = tiny(source, budget={"steps": steps})
    flags = [
        "--family", "mdlm", "--network.depth", "1", "--network.heads", "2", "--network.width", "16", "--network.cond", "8",
        "--data", str(source), "--length", "16", "--steps", str(steps), "--batch", "4", "--lr", "3e-3",
        "--train.threads", "1", "--precision", "float64", "--device", "cpu", "--train.save_every", str(steps),
        "--evaluate.rows", "8", "--evaluate.draws", "2", "--evaluate.batch", "8",
    ]  # fmt: skip
    assert settings.train.batch == 4
    return ["--into", str(into), *flags]


def test_a_job_that_is_preempted_and_then_loses_a_rank_finishes(slurm: Path, tmp_path: Path) -> None:
    """Two ranks. Asked to leave in the middle they save at their own step, and the job that Slurm starts anew goes on from
    there. Then one of them is killed: a job that has come on is put back. The losses are those of a run left alone."""
    source, into, steps = corpus(tmp_path / "prose"), tmp_path / "run", 400
    flags = [*words(source, into, steps), "--train.save_every", "50"]
    job = launch(flags, into, nodes=1, gpus_per_node=0, options={"tasks_per_node": 2})
    assert running(into) == job
    with pytest.raises(UserError, match=f"job {job} is at work on"):
        launch(flags, into, nodes=1, gpus_per_node=0)
    journal = into / "journal.jsonl"
    until(lambda: journal.exists() and len(read_journal(journal)) > 3, "the first steps")
    os.system(f"scancel {job} --signal SIGUSR2")
    until((slurm / "requeued").exists, "the requeue")
    left_at = read_journal(journal)[-1].step
    assert not (into / "record.json").exists() and left_at < steps
    until(lambda: read_journal(journal)[-1].step > max(left_at, 50) + 20, "more steps and a checkpoint")
    requeues = lambda: len((slurm / "requeued").read_text().split())
    before = requeues()  # one, or one of each rank
    os.kill(rank_of(into, 1), 9)
    until(lambda: requeues() > before, "the second requeue")
    assert not (into / "record.json").exists()
    until((into / "record.json").exists, "the end of the run")
    until(lambda: (slurm / f"{job}.state").read_text() == "COMPLETED", "the end of the job")
    assert running(into) is None
    assert [record.step for record in read_journal(journal)] == list(range(10, steps + 1, 10))
    assert losses(journal) == pytest.approx(losses_alone(source, tmp_path / "alone", steps), rel=1e-9)
    assert read_record(into)["timing"]["steps"] < steps  # the last start did not begin anew


def losses(journal: Path) -> list[float]:
    return [record.loss for record in read_journal(journal)]


def losses_alone(source: Path, folder: Path, steps: int) -> list[float]:
    """Of one process that nobody disturbs."""
    config = tiny(source, budget={"steps": steps}, train={"save_every": steps, "precision": "float64"})
    list(carry_out(open_run(config, folder), folder))
    return losses(folder / "journal.jsonl")


def rank_of(into: Path, rank: int) -> int:
    """The process that is this rank of a run."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if str(into).encode() in words and f"RANK={rank}".encode() in (process / "environ").read_bytes().split(
                b"\0"
            ):
                return int(process.name)
    raise AssertionError(f"no process is rank {rank}")


def test_a_run_that_cannot_be_is_told_in_the_log_and_not_requeued(slurm: Path, tmp_path: Path) -> None:
    into = tmp_path / "run"
    job = launch(["--into", str(into), "--family", "mdml"], into, nodes=1, gpus_per_node=0)
    until(lambda: (slurm / f"{job}.state").read_text() == "FAILED", "the end of the job")
    assert "unknown family 'mdml'" in (into / FOLDER / f"{job}_0_log.err").read_text()
    assert not (slurm / "requeued").exists()


def test_a_job_is_planned_before_it_is_handed_over(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it will cost is said; a budget too small, or a model to start from that is not there, never reaches the queue."""
    monkeypatch.setenv("FAKE_SLURM_FULL", "1")
    source = corpus(tmp_path / "prose")
    submit = [
        "train",
        *words(source, tmp_path / "run", 600),
        "--launcher",
        "slurm",
        "--nodes",
        "2",
        "--gpus-per-node",
        "4",
    ]
    for extra, said in (
        (["--from", str(tmp_path / "none")], "no such model folder"),
        (
            ["--train.parallel.kind", "hsdp", "--train.parallel.shards", "3"],
            "train.parallel.shards 3 .* must divide the 8",
        ),
        (["--data.tokenizer", "none"], "no tokenizer 'none'"),
    ):
        with pytest.raises(SystemExit):
            main([*submit, *extra])
        assert re.search(said, capsys.readouterr().err), said
    assert not (tmp_path / "run").exists() and not list(slurm.glob("*.script"))
    main(submit)
    told = capsys.readouterr().out
    assert "Training: 600 steps of 4 rows" in told and "A rank of 8: " in told and "is in the queue" in told


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
    assert "#SBATCH --requeue" in script
    [start] = [line for line in script.splitlines() if line.startswith("srun")]
    assert "--kill-on-bad-exit=1" in start and "--cpus-per-task=8" in start
    plain = settings("run", 1, 8, {})
    assert (plain["cpus_per_task"], plain["slurm_srun_args"][-1]) == (8, "--cpus-per-task=8")
    assert "cpus_per_task" not in settings("run", 1, 0, {})
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
    assert words_of(None, Path("a"), None, [], {}, 60.0) == ["--into", "a", "--timeout", "60"]


def test_a_setting_that_slurm_has_not_is_named(slurm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="partitoin"):
        launch(["--help"], tmp_path / "run", 1, 8, {"partitoin": "gpu"})
