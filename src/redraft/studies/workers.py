"""Workers of a study's queue: processes of this machine, or jobs of a Slurm cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from redraft.errors import UserError, require
from redraft.files import make_folder, read_json, write_json
from redraft.studies.execute import Workers, work
from redraft.training.distributed.environment import local_rank

RESTARTS = 3  # times that a worker which died is started again, for each worker there is
LOG, JOBS = "workers.log", "jobs.json"


class Processes(Workers):
    """`count` processes of this machine, which end when the driver does. With `gpus`, the n-th sees GPU n mod `gpus`."""

    def __init__(self, folder: Path, count: int, gpus: int = 0):
        self.folder, self.gpus, self.restarts = folder, gpus, RESTARTS * count
        self.processes = [self._start(number) for number in range(count)]

    def keep(self) -> None:
        for number, process in enumerate(self.processes):
            if process.poll() not in (None, 0):
                self.restarts -= 1
                if self.restarts < 0:
                    log = self.folder / LOG
                    raise UserError(f"workers of {self.folder} keep dying (status {process.returncode}): read {log}")
                self.processes[number] = self._start(number)

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "redraft", "study", "work", str(self.folder)]
        env = os.environ | ({"CUDA_VISIBLE_DEVICES": str(number % self.gpus)} if self.gpus else {})
        with (self.folder / LOG).open("ab") as log:
            # A session of its own: an interrupt reaches the driver alone, which then ends its workers.
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, env=env, start_new_session=True)


def take_gpu() -> None:
    """Under torchrun, see the GPU of one's own rank alone: ranks are then workers that share a machine."""
    rank = local_rank()
    if rank is not None:
        seen = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[rank % len(seen)] if seen else str(rank)


class Worker:
    """What a Slurm job calls. Before its time is up, or when it is preempted, submitit asks for a new job in its place."""

    def __call__(self, folder: str) -> None:
        work(Path(folder), guarded=False)

    def checkpoint(self, folder: str) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, folder)


class Jobs(Workers):
    """`count` jobs submitted through submitit. They outlive the driver: started again, it finds them and fills up.

    `options` go to Slurm by submitit's names (slurm_partition, timeout_min, gpus_per_node, ...). `cluster` "local" runs the
    same jobs as processes here, to try a set-up out.
    """

    def __init__(self, folder: Path, count: int, options: dict[str, Any], cluster: str = "slurm"):
        require("the Slurm launcher", "slurm", "submitit")
        import submitit

        self.folder, self.count, self.restarts = folder, count, RESTARTS * count
        make_folder(folder / "slurm")
        try:
            self.executor = submitit.AutoExecutor(folder / "slurm", cluster=cluster)
            self.executor.update_parameters(name=f"redraft-{folder.name}", **options)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise UserError(f"submitit refuses this set-up: {str(error).splitlines()[0]}") from None
        self.jobs = [] if cluster == "local" else self._alive(submitit)
        self._fill()

    def keep(self) -> None:
        alive = [job for job in self.jobs if not job.done()]
        dead = [job for job in self.jobs if job.done() and job.exception() is not None]
        self.restarts -= len(dead)
        if self.restarts < 0:
            raise UserError(f"jobs of {self.folder} keep dying: read {self.folder / 'slurm'}")
        if dead:
            self.jobs = alive
            self._fill()

    def stop(self) -> None:
        """Jobs go on without the driver."""

    def _fill(self) -> None:
        new = range(self.count - len(self.jobs))
        self.jobs += [self.executor.submit(Worker(), str(self.folder.resolve())) for _ in new]
        write_json(self.folder / JOBS, [job.job_id for job in self.jobs])

    def _alive(self, submitit: Any) -> list[Any]:
        known = read_json(self.folder / JOBS) if (self.folder / JOBS).exists() else []
        jobs = [submitit.SlurmJob(self.folder / "slurm", job_id) for job_id in known]
        return [job for job in jobs if not job.done()]
