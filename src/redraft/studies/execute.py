"""Runs a planned study: one queue on disk, any number of workers on any number of machines, safe against kills.

A run is claimed by a lock that the system releases when its holder dies (several machines: the file system must carry locks,
as NFS and Lustre do). What is recorded is skipped; what was begun goes on from its checkpoint. A branch waits until its trunk
has left the state it goes on from, `forks/NAME.safetensors`. What diverged is marked and not tried again; what killed its
worker `TRIES` times without a step forward is given up.

runs/NAME/record.json     done
runs/NAME/error.json      why not: {"kind": "failed" | "diverged" | "died", "error": ...}
runs/NAME/.tries.json     how often a worker died over it, and at which step
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.config import dump_toml, read_toml
from redraft.errors import Diverged, UserError
from redraft.files import make_folder, read_json, whereabouts, write_json, write_text
from redraft.planning.study import HOW, PlannedRun, Study, plan_study

STUDY, RUNS, FORKS = "study.toml", "runs", "forks"
RECORD, ERROR, TRIES_FILE = "record.json", "error.json", ".tries.json"
TRIES = 3
LOCK = ".lock"
IDLE = 0.5  # seconds between looks at a queue from which nothing can be taken yet


@dataclass(frozen=True)
class Status:
    """Where one run stands: waiting, running, done, failed, diverged or died; the steps it last logged, and what
    it then had: of a run that is done the validation loss, else the value of its training objective."""

    run: PlannedRun
    state: str
    step: int = 0
    loss: float | None = None
    why: str = ""

    @property
    def settled(self) -> bool:
        return self.state not in ("waiting", "running")


class Workers(ABC):
    """Some processes that call `work` on a study."""

    @abstractmethod
    def keep(self) -> None:
        """Start anew those that died. `UserError` where they keep dying."""

    @abstractmethod
    def stop(self) -> None:
        """The driver leaves."""


def open_study(table: dict[str, Any], folder: Path) -> Study:
    """Claim `folder` for this study; it may be carried out otherwise than before. `UserError` where it holds another."""
    study = plan_study(table)
    check_folder(study, folder)
    make_folder(folder / RUNS)
    write_text(folder / STUDY, dump_toml(study.config))
    return study


def check_folder(study: Study, folder: Path) -> None:
    """`UserError` where `folder` holds anything but this study."""
    path, begun = folder / STUDY, any((folder / RUNS).glob("*"))
    if path.exists() and begun and _what(read_study(folder)) != _what(study):
        raise UserError(f"{folder} holds another study: give another folder, or remove it")
    if not path.exists() and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty and holds no study: give a new or empty folder")


def _what(study: Study) -> dict[str, Any]:
    """A study without how it is carried out."""
    return study.config.model_dump(exclude=set(HOW))


def read_study(folder: Path) -> Study:
    if not folder.is_dir():
        raise UserError(f"no such study folder: {folder}{whereabouts(folder)}")
    if not (folder / STUDY).exists():
        raise UserError(f"{folder} holds no study ({STUDY} is missing)")
    return plan_study(read_toml(folder / STUDY))


def execute(study: Study, folder: Path, start: Callable[[], Workers], poll: float = 0.5) -> Iterator[list[Status]]:
    """Start workers, keep them going and yield where the runs stand until all are settled. What failed is tried again."""
    _forget_failures(folder)
    workers = start()
    try:
        while True:
            states = status(study, folder)
            yield states
            if all(s.settled for s in states):
                return
            workers.keep()
            time.sleep(poll)
    finally:
        workers.stop()


def _forget_failures(folder: Path) -> None:
    """Before workers start: one that sees an error takes the run for settled. The count of tries goes first, since a worker of
    another driver may take the run as soon as its error is gone."""
    for error in folder.glob(f"{RUNS}/*/{ERROR}"):
        if read_json(error).get("kind") != "diverged":
            (error.parent / TRIES_FILE).unlink(missing_ok=True)
            error.unlink()


def status(study: Study, folder: Path) -> list[Status]:
    return [_status(run, folder / RUNS / run.name) for run in study.runs]


def work(folder: Path, guarded: bool = True) -> None:
    """A worker: claim and carry out runs until none is left to claim. `guarded`: ends when the process that started it does.

    SIGTERM ends it too, at the next logged step; the state is saved. Unguarded, signals are left to who started it.
    """
    study, parent, asked, idle = read_study(folder), os.getppid(), list[int](), 0
    if guarded:
        signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    leave = lambda: bool(asked) or (guarded and os.getppid() != parent)
    while not leave():
        if any(_taken(study, run, folder, leave) for run in _in_turn(study, folder)):
            idle = 0
        elif idle and not any(_blocked(run, folder) for run in study.runs):
            return  # looked twice: who asks for the status holds a lock for a moment
        else:
            idle += 1
            time.sleep(IDLE)


def _in_turn(study: Study, folder: Path) -> list[PlannedRun]:
    """What could be taken now, branches first: their forks then leave the disk."""
    ready = [run for run in study.runs if not _settled(folder / RUNS / run.name) and not _blocked(run, folder)]
    return sorted(ready, key=lambda run: not run.trunk)


def _blocked(run: PlannedRun, folder: Path) -> bool:
    """Whether it waits for its trunk. A trunk that ended without leaving a fork is no reason to wait: it starts afresh."""
    from redraft.training.checkpoint import STATE

    place = folder / RUNS / run.name
    if not run.trunk or _settled(place) or (place / STATE).exists() or fork(folder, run).exists():
        return False
    return not _settled(folder / RUNS / run.trunk)


def fork(folder: Path, run: PlannedRun) -> Path:
    """The file that holds the state which a branch goes on from."""
    return folder / FORKS / f"{run.name}.safetensors"


def _taken(study: Study, run: PlannedRun, folder: Path, leave: Callable[[], bool]) -> bool:
    """Whether the run was free; if so it has been carried out, or stopped when it was time to leave."""
    place = folder / RUNS / run.name
    with claimed(place) as mine:
        if not mine or _settled(place):
            return False
        if _given_up(place):
            return True
        try:
            for _ in _steps(study, run, folder):
                if leave():
                    (place / TRIES_FILE).unlink()
                    sys.exit(0)
        except UserError as error:
            kind = "diverged" if isinstance(error, Diverged) else "failed"
            write_json(place / ERROR, {"kind": kind, "error": str(error)})
        (place / TRIES_FILE).unlink(missing_ok=True)
        fork(folder, run).unlink(missing_ok=True)
        if run.config.train.compile:
            _forget_programs()
    return True


def _forget_programs() -> None:
    """What was compiled is of that run's shapes, and after eight programs for one function torch compiles no more of them."""
    import torch

    torch.compiler.reset()


def _steps(study: Study, run: PlannedRun, folder: Path) -> Iterator[Any]:
    from redraft.runs.claim import open_run
    from redraft.runs.run import Branch, carry_out

    place = folder / RUNS / run.name
    branch = Branch(run.trunk, run.at, fork(folder, run)) if run.trunk else None
    forks: dict[int, list[Path]] = {}
    for other in study.runs:
        if other.trunk == run.name and not _settled(folder / RUNS / other.name):
            make_folder(folder / FORKS)
            forks.setdefault(other.at, []).append(fork(folder, other))
    return carry_out(open_run(run.config, place), place, run.name, run.arm, branch, forks)


def _given_up(place: Path) -> bool:
    """Counts one more try at the step where the run stands; whether there were enough without a step forward."""
    step, _ = _reached(place)
    before = read_json(place / TRIES_FILE) if (place / TRIES_FILE).exists() else {"step": step, "tries": 0}
    tries = before["tries"] + 1 if before["step"] == step else 1
    if tries > TRIES:
        why = f"its worker died {TRIES} times after step {step}: out of memory, or killed? See the log of the workers"
        write_json(place / ERROR, {"kind": "died", "error": why})
        return True
    write_json(place / TRIES_FILE, {"step": step, "tries": tries})
    return False


def _reached(place: Path) -> tuple[int, float | None]:
    """The last step in the journal and its loss."""
    from redraft.training.journal import last_record

    last = last_record(place / "journal.jsonl") if (place / "journal.jsonl").exists() else None
    return (last.step, last.loss) if last else (0, None)


@contextmanager
def claimed(place: Path) -> Iterator[bool]:
    """Whether this process holds the run; released when the block, or the process, ends."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _settled(place: Path) -> bool:
    return (place / RECORD).exists() or (place / ERROR).exists()


def _status(run: PlannedRun, place: Path) -> Status:
    if (place / RECORD).exists():
        record = read_json(place / RECORD)
        return Status(run, "done", record["steps"], record["loss"])
    if (place / ERROR).exists():
        error = read_json(place / ERROR)
        return Status(run, error.get("kind", "failed"), _reached(place)[0], why=error["error"])
    return Status(run, "running" if _held(place) else "waiting", *_reached(place))


def _held(place: Path) -> bool:
    """Whether a worker holds the run."""
    if not (place / LOCK).exists():
        return False
    with claimed(place) as free:
        return not free
