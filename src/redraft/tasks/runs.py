"""Many small runs, each in a folder named after its settings, so that a repeated command finds what is done."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from redraft.config import RunConfig, merge, validated
from redraft.errors import UserError
from redraft.files import alone, make_folder


@dataclass(frozen=True)
class Job:
    """A run and its folder under `into`: `label`, then a fingerprint of everything that decides the run."""

    label: str
    config: RunConfig
    into: Path

    @property
    def folder(self) -> Path:
        settings = json.dumps(self.config.model_dump(), sort_keys=True, default=str)
        return self.into / f"{self.label}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"

    @property
    def done(self) -> bool:
        return (self.folder / "record.json").exists()


def job(label: str, base: dict[str, Any], over: dict[str, Any], into: Path) -> Job:
    """`over` laid on `base`. `UserError` where they make no run."""
    return Job(label, validated(RunConfig, merge(base, over)), into)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def carry_out_all(jobs: Sequence[Job], workers: int) -> Iterator[Job]:
    """Train and score what is not done yet, `workers` at a time, and yield each run as it ends. Killed, they go on."""
    left = [job for job in jobs if not job.done]
    if workers == 1 or len(left) < 2:
        for job in left:
            carry_out_one(job)
            yield job
        return
    with ProcessPoolExecutor(min(workers, len(left)), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(carry_out_one, job): job for job in left}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool:
            raise UserError(
                "a worker died (out of memory, or killed?): the same command goes on; try fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def carry_out_one(job: Job) -> None:
    from redraft.runs.claim import open_run
    from redraft.runs.run import carry_out

    make_folder(job.folder)
    with alone(job.folder):
        for _ in carry_out(open_run(job.config, job.folder), job.folder, job.label):
            pass
