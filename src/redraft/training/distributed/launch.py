"""A run as a Slurm job, through submitit: one task per accelerator. On preemption it saves and is requeued.

`redraft train --nodes N --gpus-per-node G --launcher slurm ...` ends here. Every task starts the same command without those
flags, with the environment that torchrun would give it, so that training knows nothing of Slurm. Before its time is up, and
when it is preempted, Slurm sends SIGUSR2: the ranks then save and leave after their step (they know it as SIGTERM), and the
first task has the job requeued, which goes on where it stopped. `INTO/.slurm` holds the job's id, its script and what its
tasks print.

A job also goes on by itself where a machine fails (Slurm puts it back) or a rank is lost, if it had come on since its start.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redraft.errors import ASKED, LOST_RANK, UserError, require
from redraft.files import make_folder, read_json, write_json

FOLDER, JOB = ".slurm", "job.json"
RETRIES = 1000  # times that a job may run out of time and be put back
SHARED = ("cpus_per_task", "gpus_per_node", "mem_gb", "name", "nodes", "tasks_per_node", "timeout_min")
CPUS = 8  # a task, where it has a GPU and is not told otherwise


class Rank:
    """What every task calls: `redraft train` as one rank of the job."""

    def __call__(self, words: list[str]) -> None:
        """Raises `RuntimeError` where the run ended with an error, which its log has told."""
        requeue, told, began = signal.getsignal(signal.SIGUSR2), list[int](), time.time()
        command = [sys.executable, "-m", "redraft", "train", *words]
        deaf = lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # some Slurms send it to the rank too
        with subprocess.Popen(command, env=os.environ | _environment(), preexec_fn=deaf) as rank:  # noqa: PLW1509 (no threads)

            def leave(number: int, frame: object) -> None:
                told.append(number)
                rank.terminate()

            signal.signal(signal.SIGUSR2, leave)
            signal.signal(signal.SIGTERM, leave)  # cancelled, or preempted by a Slurm that puts it back itself
            status = rank.wait()
        if signal.SIGUSR2 in told and status != 0 and callable(requeue):
            requeue(signal.SIGUSR2, None)  # the first task's ends the job
        elif not told and (status == LOST_RANK or status < 0):
            self.lost(words, status, began)
        elif not told and status not in (0, ASKED):
            raise RuntimeError(f"redraft train ended with status {status}: its own words are in the log above")

    def lost(self, words: list[str], status: int, began: float) -> None:
        """A rank died, this one or another: the job is put back, unless it had not come on since it `began`."""
        journal = Path(words[words.index("--into") + 1]) / "journal.jsonl"
        if not journal.exists() or journal.stat().st_mtime < began:
            raise RuntimeError(
                f"a rank was lost (status {status}) before the run came on: its words are in the log above"
            )
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)

    def checkpoint(self, words: list[str]) -> Any:
        """The same again: the run's folder knows where it stands."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, words)


def launch(
    words: Sequence[str], into: Path, nodes: int, gpus_per_node: int, options: Mapping[str, Any] | None = None
) -> str:
    """Submit `redraft train words...`, which must name `into`; the job's id. A job that is still about is not submitted twice.

    `options` go to Slurm by submitit's names; without gpus, `tasks_per_node` says how many ranks a machine has.
    """
    require("the Slurm launcher", "slurm", "submitit")
    import submitit

    if (there := running(into)) is not None:
        raise UserError(
            f"job {there} is at work on {into} already: `scancel {there}` ends it, `squeue -j {there}` shows it"
        )
    if nodes < 1 or gpus_per_node < 0:
        raise UserError(f"--nodes must be at least 1 and --gpus-per-node at least 0, got {nodes} and {gpus_per_node}")
    if shutil.which("srun") is None:
        raise UserError(
            "Slurm does not take the job: there is no `srun` here, so run it on a login node of the cluster"
        )
    folder = into.resolve() / FOLDER
    make_folder(folder)
    try:
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=RETRIES)
        executor.update_parameters(**settings(into.resolve().name, nodes, gpus_per_node, options or {}))
        job = executor.submit(Rank(), [str(word) for word in words])
    except (
        RuntimeError,
        NameError,
        TypeError,
        ValueError,
        OSError,
        submitit.core.utils.FailedSubmissionError,
    ) as error:
        raise UserError(f"Slurm does not take the job: {' '.join(str(error).split())}") from None
    write_json(folder / JOB, {"id": job.job_id})
    return str(job.job_id)


def settings(name: str, nodes: int, gpus_per_node: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """What submitit is told: a task a GPU with some cores, put back when a machine fails, ended when a task does."""
    out: dict[str, Any] = {"name": f"redraft-{name}", "nodes": nodes, "timeout_min": 24 * 60}
    out |= {"gpus_per_node": gpus_per_node, "cpus_per_task": CPUS} if gpus_per_node else {}
    out |= {"tasks_per_node": max(1, gpus_per_node), "slurm_additional_parameters": {"requeue": True}}
    out |= named(given)
    own = ["--kill-on-bad-exit=1"]
    if "cpus_per_task" in out:  # newer Slurms do not pass them on to srun by themselves
        own += [f"--cpus-per-task={out['cpus_per_task']}"]
    return {**out, "slurm_srun_args": [*own, *out.get("slurm_srun_args", [])]}


def running(into: Path) -> str | None:
    """The id of the job that is in the queue, or at work, for a run; None if there is none."""
    path = into / FOLDER / JOB
    if not path.exists():
        return None
    number = str(read_json(path)["id"])
    asked = subprocess.run(["squeue", "-h", "-j", number, "-o", "%T"], capture_output=True, text=True, check=False)
    return number if asked.returncode == 0 and asked.stdout.strip() else None


def log_of(into: Path, job: str) -> Path:
    """Where the first rank prints."""
    return into.resolve() / FOLDER / f"{job}_0_log.out"


def words_of(
    recipe: str | None,
    into: Path,
    start: str | None,
    track: Sequence[str],
    overrides: Mapping[str, Any],
    timeout: float = 600.0,
) -> list[str]:
    """The words after `redraft train` that a task is given: what the command line was, without the launcher's."""
    words = ([recipe] if recipe else []) + ["--into", str(into)] + (["--from", start] if start else [])
    words += [] if timeout == 600 else ["--timeout", f"{timeout:g}"]
    return words + (["--track", *track] if track else []) + _flags(overrides, "")


def _flags(table: Mapping[str, Any], prefix: str) -> list[str]:
    out = list[str]()
    for key, value in table.items():
        out += _flags(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"--{prefix}{key}={_toml(value)}"]
    return out


def _toml(value: Any) -> str:
    """A value as the command line takes it, on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(v)}' for key, v in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """`partition=gpu`, `timeout_min=600`, ... as settings; values are TOML, else text."""
    out: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise UserError(f"--slurm takes name=value, such as partition=gpu; got {word!r}")
        try:
            out[key.replace("-", "_")] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            out[key.replace("-", "_")] = value
    return out


def named(options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by submitit's names: those that only Slurm knows begin with `slurm_`."""
    return {key if key in SHARED or key.startswith("slurm_") else f"slurm_{key}": v for key, v in options.items()}


def _environment() -> dict[str, str]:
    """What torchrun would tell this task."""
    from submitit.helpers import TorchDistributedEnvironment

    here = TorchDistributedEnvironment()
    return {
        "MASTER_ADDR": str(here.master_addr),
        "MASTER_PORT": str(here.master_port),
        "RANK": str(here.rank),
        "WORLD_SIZE": str(here.world_size),
        "LOCAL_RANK": str(here.local_rank),
        "LOCAL_WORLD_SIZE": str(here.local_world_size),
    }
