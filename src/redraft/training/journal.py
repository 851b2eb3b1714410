"""A run's journal: one typed record a line. No number is ever read back out of text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from redraft.files import disk, write_text


@dataclass(frozen=True)
class StepRecord:
    """One logged step: `step` counts from 1; loss in nats per token; `seconds` since the run (or its resumption) began."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    flops: float
    seconds: float
    kind: str = "step"


class Journal:
    """Append-only; a line is written whole or, after a crash, dropped when the run resumes."""

    def __init__(self, path: Path, resume_at: int):
        kept = [line for line, record in _lines(path) if record["step"] <= resume_at] if path.exists() else []
        write_text(path, "".join(kept))
        self.path = path
        self.file = path.open("a", encoding="utf-8")

    def write(self, record: StepRecord) -> None:
        with disk(self.path.parent):
            self.file.write(json.dumps(asdict(record)) + "\n")
            self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_journal(path: Path) -> list[StepRecord]:
    """Every whole record of a journal."""
    return [StepRecord(**record) for _, record in _lines(path)]


def last_record(path: Path) -> StepRecord | None:
    """The newest whole record, read from the end of the file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        tail = file.read().decode(errors="ignore")
    whole = [line for line in tail.splitlines(keepends=True) if line.endswith("}\n") and line.startswith("{")]
    return StepRecord(**json.loads(whole[-1])) if whole else None


def _lines(path: Path) -> Iterator[tuple[str, dict]]:
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield line, json.loads(line)
