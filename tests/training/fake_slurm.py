"""A Slurm of one machine, for tests: sbatch, srun, squeue, scancel, scontrol, sacct under their names, in one file.

State lies in $FAKE_SLURM: ID.script, ID.state, ID.tasks (process ids), ID.requeue. A job's script runs in the background; srun
starts its tasks with Slurm's variables; a job that was requeued runs its script anew.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_SLURM"])
TOOLS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sacct")


def install(folder: Path) -> None:
    """The tools, in a folder for the PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOOLS:
        tool = folder / name
        tool.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {name} "$@"\n')
        tool.chmod(0o755)


def sbatch(script: str) -> None:
    number = 1 + len(list(HOME.glob("*.script")))
    (HOME / f"{number}.script").write_text(Path(script).read_text())
    state(number, "PENDING")
    if "FAKE_SLURM_FULL" not in os.environ:  # else it waits in the queue for ever
        batch = [sys.executable, __file__, "batch", str(number)]
        quiet = dict.fromkeys(
            ("stdin", "stdout", "stderr"), subprocess.DEVNULL
        )  # who submits waits for its own to close
        subprocess.Popen(batch, start_new_session=True, **quiet)
    print(f"Submitted batch job {number}")


def batch(number: str) -> None:
    """Runs a job's script until it is not requeued any more."""
    script = (HOME / f"{number}.script").read_text()
    flag = lambda name, default: (re.findall(rf"#SBATCH --{name}=(\S+)", script) or [default])[0]
    nodes, tasks = int(flag("nodes", "1")), int(flag("ntasks-per-node", "1"))
    env = os.environ | {
        "SLURM_JOB_ID": number, "SLURM_NTASKS": str(nodes * tasks), "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": "127.0.0.1", "FAKE_TASKS_PER_NODE": str(tasks),
    }  # fmt: skip
    while True:
        (HOME / f"{number}.requeue").unlink(missing_ok=True)
        time.sleep(0.3)  # submitit moves the pickled job into place after sbatch answers
        state(number, "RUNNING")
        with Path(flag("output", "/dev/null").replace("%j", number)).open("ab") as log:
            status = subprocess.run(
                ["bash", str(HOME / f"{number}.script")], env=env, stdout=log, stderr=log, check=False
            )
        (HOME / f"{number}.tasks").unlink(missing_ok=True)
        if not (HOME / f"{number}.requeue").exists():
            return state(number, "COMPLETED" if status.returncode == 0 else "FAILED")
        state(number, "PENDING")


def srun(*words: str) -> None:
    """Starts the tasks; where one fails, the others are ended."""
    number, count = os.environ["SLURM_JOB_ID"], int(os.environ["SLURM_NTASKS"])
    per_node = int(os.environ["FAKE_TASKS_PER_NODE"])
    options = {word: words[i + 1] for i, word in enumerate(words) if word in ("--output", "--error")}
    command = list(words[words.index(sys.executable) :])
    tasks = []
    for rank in range(count):
        env = os.environ | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % per_node)}
        env |= {"SLURM_NODEID": str(rank // per_node)}
        files = [options[name].replace("%j", number).replace("%t", str(rank)) for name in ("--output", "--error")]
        with Path(files[0]).open("ab") as out, Path(files[1]).open("ab") as err:
            tasks.append(subprocess.Popen(command, env=env, stdout=out, stderr=err))
    (HOME / f"{number}.tasks").write_text(" ".join(str(task.pid) for task in tasks))
    while any(task.poll() is None for task in tasks):
        time.sleep(0.1)
        if any(task.poll() not in (None, 0) for task in tasks):
            time.sleep(1)
            for task in tasks:
                task.kill()
    sys.exit(max(abs(task.returncode) for task in tasks))


def squeue(*words: str) -> None:
    now = (HOME / f"{words[words.index('-j') + 1]}.state").read_text()
    if now in ("PENDING", "RUNNING"):
        print(now)


def sacct(*words: str) -> None:
    print("JobID|State|NodeList")
    for number in [words[i + 1] for i, word in enumerate(words) if word == "-j"]:
        print(f"{number}|{(HOME / f'{number}.state').read_text()}|127.0.0.1")


def scancel(number: str, *words: str) -> None:
    """With --signal NAME, as preemption and the end of a job's time send it: to every task."""
    name = words[words.index("--signal") + 1].removeprefix("SIG")
    for task in (HOME / f"{number}.tasks").read_text().split():
        os.kill(int(task), getattr(signal, f"SIG{name}"))


def scontrol(verb: str, number: str) -> None:
    assert verb == "requeue"
    (HOME / f"{number}.requeue").touch()
    with (HOME / "requeued").open("a") as log:
        log.write(f"{number}\n")


def state(number: object, now: str) -> None:
    (HOME / f"{number}.state").write_text(now)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
