"""A miniature study from start to report, offline: AR, MDLM, Duo and Eso-LM at equal FLOPs on the text of Python's own
standard library. About seven minutes on two cores. Interrupted, the same command continues.

  redraft demo
  redraft demo --into elsewhere
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from redraft.commands.demo_next import next_commands, next_lines
from redraft.commands.plan import recipe_table
from redraft.commands.study_queue import carry_out
from redraft.commands.study_results import measure_frontier
from redraft.display import emit


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--into", type=Path, default=Path("demo"), help="folder of the study (default: demo)")
    parser.add_argument("--recipe", default="demo", help="another study recipe")
    parser.add_argument("--json", action="store_true", help="print the conclusions as JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    carry_out(recipe_table(options.recipe, {}), options.into, options.json)
    from redraft.evaluation.compute import AUTO
    from redraft.report.report import conclusions, write_report

    measure_frontier(options.into, AUTO, options.json)
    path = write_report(options.into)
    said = conclusions(options.into)
    if options.json:
        return emit({"conclusions": said, "report": str(path), "next": next_commands(options.into)})
    print("\n" + "\n".join(said))
    print(f"\nThe report: {path.resolve().as_uri()}")
    print("\n".join(next_lines(options.into)))
    return None
