"""Two results side by side: what differs, with its error, and what may not be compared, with the reason.

redraft compare runs/ar runs/mdlm                 (the records of two runs)
redraft compare ar.json mdlm.json                 (what `redraft eval --json` printed, or its --out wrote)

The difference is B less A; its error is one standard error. Right-or-wrong metrics over the same documents are compared
document by document (McNemar's exact test), else results count as independent. Exit status 0 even where all is refused.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.display import columns, emit
from redraft.errors import UserError
from redraft.files import whereabouts

if TYPE_CHECKING:
    from redraft.runs.compare import Compared, Comparison


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("a", type=Path, help="a run folder or a result file")
    parser.add_argument("b", type=Path, help="another")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    for path in (options.a, options.b):
        if not path.exists():
            raise UserError(f"no such run folder or result file: {path}{whereabouts(path)}")
    from redraft.runs.compare import compare, read_result

    found = compare(read_result(options.a), read_result(options.b))
    names = {"a": found.a.name, "b": found.b.name}
    told = {**names, "metrics": [asdict(line) for line in found.lines], "notes": found.notes}
    emit(told) if options.json else print("\n".join(_table(found)))


def _table(found: Compared) -> list[str]:
    rows: list[tuple[str, ...]] = [("", f"A: {found.a.name}", f"B: {found.b.name}", "B - A", "s.e.", "")]
    rows += [_row(line) for line in found.lines]
    return [*columns(rows), *(["", *found.notes] if found.notes else [])]


def _row(line: Comparison) -> tuple[str, ...]:
    if line.refused:
        return (line.metric, f"{line.a:.4g}", f"{line.b:.4g}", "", "", f"not comparable: {line.refused}")
    error = "" if line.error is None else f"{line.error:.2g}"
    seen = "" if line.detectable is None else f": {line.detectable:.2g} could have been seen (80 % power)"
    p = "" if line.p is None else f" (p = {line.p:.2g})"
    return (line.metric, f"{line.a:.4g}", f"{line.b:.4g}", f"{line.difference:+.4g}", error, line.verdict + seen + p)
