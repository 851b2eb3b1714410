"""What a stage leaves: its cases, one by one, in a file that is whole at any moment. No torch."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Work = Callable[..., dict[str, Any]]
State = Literal["pass", "fail", "refused", "skipped"]
FOREIGN = ("site-packages", "dist-packages", "lib/python")  # in the path of code that is not ours


class Missed(Exception):
    """What was measured is not what it should be; `numbers` say by how much."""

    def __init__(self, why: str, **numbers: Any):
        super().__init__(why)
        self.numbers = numbers


class Late(Exception):
    """The stage's time was up before the case was done."""


@dataclass(frozen=True)
class Case:
    """`refused`: redraft itself says that this cannot be done here (`error` says why), which is no failure."""

    name: str
    state: State
    seconds: float
    numbers: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass
class Stage:
    """`state`: running, done, late (its deadline came), skipped (too late to begin) or died."""

    name: str
    state: str = "running"
    seconds: float = 0.0
    cases: list[Case] = field(default_factory=list)
    error: str = ""  # of one that died

    def numbers(self, name: str) -> dict[str, Any] | None:
        """Those of the case of that name, if it passed."""
        return next((case.numbers for case in self.cases if case.name == name and case.state == "pass"), None)


@dataclass
class Report:
    """All stages, in the file `path`."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)

    @staticmethod
    def read(path: Path) -> Report:
        table = json.loads(path.read_text())
        stages = {
            name: Stage(s["name"], s["state"], s["seconds"], [Case(**case) for case in s["cases"]], s["error"])
            for name, s in table["stages"].items()
        }
        return Report(path, table["facts"], stages)

    def write(self) -> None:
        """Aside, then in its place: whoever is killed leaves a whole file."""
        table = {"facts": self.facts, "stages": {name: asdict(stage) for name, stage in self.stages.items()}}
        aside = self.path.with_name(f"{self.path.name}.tmp-{os.getpid()}")
        aside.write_text(json.dumps(table, indent=1) + "\n")
        aside.replace(self.path)


@dataclass
class Cases:
    """The cases of a stage as they are carried out. `deadline`: of `time.time()`; what would begin too late is skipped."""

    report: Report
    name: str
    deadline: float

    def __post_init__(self) -> None:
        self.began = time.time()
        self.stage = self.report.stages[self.name] = Stage(self.name)
        self.report.write()

    @property
    def left(self) -> float:
        return self.deadline - time.time()

    def run(self, name: str, work: Work, *of: Any, needs: float = 1.0) -> dict[str, Any] | None:
        """The numbers `work(*of)` of one case; None where it has none. `needs`: seconds without which it is not begun."""
        if self.left < needs:
            self.add(Case(name, "skipped", 0.0, error=f"needs {needs:.0f} s, {max(0, self.left):.0f} s were left"))
            return None
        began = time.time()
        case = outcome(name, work, of, began)
        self.add(case)
        return case.numbers if case.state == "pass" else None

    def add(self, case: Case) -> None:
        self.stage.cases.append(case)
        self.stage.seconds = time.time() - self.began
        self.report.write()

    def done(self) -> None:
        self.stage.state, self.stage.seconds = "done", time.time() - self.began
        self.report.write()


def outcome(name: str, work: Work, of: tuple[Any, ...], began: float) -> Case:
    from redraft.errors import UserError

    spent = lambda: time.time() - began
    try:
        return Case(name, "pass", numbers=work(*of), seconds=spent())
    except Missed as missed:
        return Case(name, "fail", spent(), missed.numbers, str(missed))
    except Late as late:
        return Case(name, "skipped", spent(), error=str(late))
    except UserError as refused:
        return Case(name, "refused", spent(), error=str(refused))
    except Exception as error:  # whatever a device does is told, and the next case goes on
        return Case(name, "fail", spent(), error=told(error))


def told(error: BaseException) -> str:
    """One line: what happened, and the deepest place in our own code where it did."""
    line = next(iter(str(error).strip().splitlines()), "")[:300]
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in _frames(error)]
    return f"{type(error).__name__}: {line}" + (f" ({places[-1]})" if places else "")


def _frames(error: BaseException) -> Iterator[traceback.FrameSummary]:
    for frame in traceback.extract_tb(error.__traceback__):
        if not any(part in frame.filename for part in FOREIGN):
            yield frame
