"""Many small runs, each in a folder named after its settings, so that a repeated command finds what is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from redraft.config import RunConfig, merge, validated
from redraft.errors import UserError
from redraft.files import alone, make_folder, read_json, write_json, write_text


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


def grid(
    base: dict[str, Any], data: dict[str, Any], seed: int, steps: Sequence[int], families: Sequence[str],
    over: dict[str, Any], into: Path,
) -> list[Job]:  # fmt: skip
    """A run of each family at each number of steps, on the same data; in the folder `runs` of `into`."""
    table = {**base, "seed": seed, "data": {**base["data"], **data}}
    return [
        job(f"{family}-{n}-s{seed}", {**table, "family": family, "budget": {"steps": n}}, over, into / "runs")
        for n, family in product(steps, families)
    ]


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What the JSON file `path` holds; made and written where it is not there."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def written(files: dict[str, str], folder: Path) -> Path:
    """Text files by name, written unless they are there, in a folder named after what is in them."""
    place = folder / hashlib.sha256("".join(files.values()).encode()).hexdigest()[:12]
    make_folder(place)
    for name, text in files.items():
        if not (place / name).exists():
            write_text(place / name, text)
    return place


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
