"""The journal of a run: one typed record a line.

step        what was trained, every LOG_EVERY steps; a run that continues drops those that it will train again
heartbeat   that it lives: how fast it is, what is left, and which rank is slowest
others      what happened to it, and what was done about it (health.py). History: kept, though steps are taken back
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redraft.files import disk, write_text

FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class StepRecord:
    """One logged step: `step` counts from 1; `loss`, nats per token, is the training objective's; `seconds` since the run (or
    its resumption) began."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    flops: float
    seconds: float
    kind: str = "step"


@dataclass(frozen=True)
class Heartbeat:
    """`busy`: seconds of a rank's own work, the fastest and the slowest; `slowest` is a rank. `left` seconds to the end."""

    step: int
    steps: int
    left: float
    tokens_per_second: float
    busy: tuple[float, float]
    slowest: int
    kind: str = "heartbeat"


@dataclass(frozen=True)
class Event:
    """Something that happened, and what was done: `text` says both."""

    kind: str
    step: int
    text: str


class Journal:
    """Append-only; a line is written whole or, after a crash, dropped when the run resumes.

    A full disk does not end training here: lines wait until there is room.
    """

    def __init__(self, path: Path, resume_at: int):
        again = lambda record: record["kind"] == "step" and record["step"] > resume_at
        kept = [line for line, record in _lines(path) if not again(record)] if path.exists() else []
        write_text(path, "".join(kept))
        self.path, self.waiting = path, b""
        self.file = path.open("ab", buffering=0)

    def write(self, record: StepRecord | Heartbeat | Event) -> None:
        self.waiting += (json.dumps(asdict(record)) + "\n").encode()
        size = os.fstat(self.file.fileno()).st_size
        try:
            written = self.file.write(self.waiting) or 0
        except OSError as error:
            if error.errno not in FULL:
                with disk(self.path.parent):
                    raise
            return
        if written < len(self.waiting):  # the disk took a part
            self.file.truncate(size)
        else:
            self.waiting = b""

    def close(self) -> None:
        self.file.close()


def read_journal(path: Path) -> list[StepRecord]:
    """Every whole step record of a journal."""
    return [StepRecord(**record) for _, record in _lines(path) if record["kind"] == "step"]


def read_events(path: Path) -> list[dict[str, Any]]:
    """Every other record."""
    return [record for _, record in _lines(path) if record["kind"] != "step"]


def last_record(path: Path) -> StepRecord | None:
    """The newest whole step record, read from the end of the file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        tail = file.read().decode(errors="ignore")
    whole = [line for line in tail.splitlines(keepends=True) if line.endswith("}\n") and line.startswith("{")]
    steps = [record for line in whole if (record := json.loads(line))["kind"] == "step"]
    return StepRecord(**steps[-1]) if steps else None


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield line, json.loads(line)
