"""A miniature study from start to report, offline: AR, MDLM, Duo and Eso-LM at equal FLOPs on the text of Python's own
standard library, as large as five minutes of this machine allow. A page with all families is there after a minute or so,
and is written anew as runs end. Interrupted, the same command continues.

  redraft demo
  redraft demo --minutes 20 --into longer
  redraft demo --recipe demo          the recipe's own budgets: the same runs on every machine
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.commands.demo_next import next_commands, next_lines
from redraft.commands.plan import recipe_table
from redraft.commands.study_queue import carry_out
from redraft.commands.study_results import measure_frontier
from redraft.display import emit
from redraft.errors import UserError, require
from redraft.numbers import real

if TYPE_CHECKING:
    from redraft.studies.execute import Status

MINUTES = 5.0
PART = 0.15  # of the time, at most, that is spent on writing pages of a study that is under way


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--into", type=Path, default=Path("demo"), help="folder of the study (default: demo)")
    parser.add_argument(
        "--minutes",
        type=real(0, 1e6, above=True),
        help="what this machine may spend: budgets are scaled to it (default: 5)",
    )
    parser.add_argument("--recipe", help="a study recipe, carried out as it is (with --minutes: scaled)")
    parser.add_argument("--json", action="store_true", help="print the conclusions as JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    require("the demo's report", "figures", "altair", "vl_convert")
    table = _table(options)
    pages = Pages(options.into, options.json)
    carry_out(table, options.into, options.json, watcher=pages)
    from redraft.evaluation.compute import AUTO
    from redraft.report.report import conclusions, results, write_report

    pages.write("All runs are trained; now they sample, at several speeds.")
    measure_frontier(options.into, AUTO, options.json)
    found = results(options.into)
    path, said = write_report(options.into, found=found), conclusions(options.into, found)
    if options.json:
        return emit({"conclusions": said, "report": str(path), "next": next_commands(options.into)})
    print("\n" + "\n".join(said))
    print(f"\nThe report: {path.resolve().as_uri()}")
    print("\n".join(next_lines(options.into)))
    return None


def _table(options: Namespace) -> dict[str, Any]:
    """The recipe, scaled to the minutes; of a folder that was begun, its own."""
    from redraft.config import read_toml
    from redraft.planning.to_minutes import to_minutes
    from redraft.studies.execute import STUDY

    if (begun := options.into / STUDY).exists() and options.recipe is None:
        return read_toml(begun)
    table = recipe_table(options.recipe or "demo")
    if options.recipe is not None and options.minutes is None:
        return table
    asked = options.minutes or MINUTES
    fitted = to_minutes(table, asked)
    if options.minutes is not None and fitted.minutes > 1.1 * asked:
        raise UserError(f"as busy as this machine is, the smallest study takes {fitted.minutes:.1f} minutes: give more")
    if not options.json:
        print(
            f"{fitted.factor:.2g} times the recipe's budgets: about {fitted.minutes:.1f} minutes of this machine.",
            flush=True,
        )
    return fitted.table


class Pages:
    """Writes the report of a study that is under way, once each family has a run and then as runs end."""

    def __init__(self, folder: Path, quiet: bool):
        self.folder, self.quiet = folder, quiet
        # Runs on the page; seconds that it took; when the next may be begun.
        self.done, self.spent, self.free = 0, 0.0, 0.0

    def __call__(self, states: list[Status]) -> None:
        from redraft.scaling.records import JUDGE

        done = [s for s in states if s.state == "done" and s.run.arm != JUDGE]
        families = {s.run.arm for s in states} - {JUDGE}
        if len(done) > self.done and {s.run.arm for s in done} == families and time.monotonic() >= self.free:
            self.write(f"{sum(s.settled for s in states)} of {len(states)} runs are done.")
            self.done = len(done)

    def write(self, underway: str) -> None:
        from redraft.report.report import write_report

        began, first = time.monotonic(), not self.spent
        path = write_report(self.folder, underway=underway)
        self.spent = time.monotonic() - began
        self.free = time.monotonic() + self.spent / PART
        if first and not self.quiet:
            print(f"A first page with all families, written anew as runs end: {path.resolve().as_uri()}", flush=True)
