"""Many runs: carry them out, see where they stand, fit scaling laws, draw the frontier, write the report.

redraft study new RECIPE.toml                      write a commented recipe to begin with
redraft study run RECIPE --into studies/first      train and score every run (continues; skips what is recorded)
redraft study run RECIPE --into studies/first --launcher slurm --workers 16 --slurm.slurm_partition gpu --slurm.timeout_min 240
torchrun --nproc-per-node 8 -m redraft study work studies/first        eight more workers on its queue, a GPU each
redraft study tune RECIPE --into studies/rates     a learning rate for each family and size; writes tuned.toml, a recipe
redraft study status studies/first --watch         where it stands, from any terminal
redraft study fit FILE                             fits of a study folder, of any CSV, JSONL or parquet with the columns
                                                   family, params, tokens, flops, loss, or of published:scaling-beyond or
                                                   published:smdm; the laws published:quokka and published:von-ruette
redraft study import SRC --into runs.csv --columns loss=val_loss,params=n_params,family=ar      records of other origin
redraft study frontier studies/first               speed and quality of each family's best run; --steps "[4, 64]", the
                                                   other keys of [frontier] and --evaluator MODEL can be given here
redraft study report studies/first                 report.html, one page that works offline; --figures and --numbers too
redraft study report studies/a studies/b           one page that compares studies
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from redraft.commands import Part, device_flags, study_queue, study_results
from redraft.errors import UserError, unknown
from redraft.numbers import WIDEST, real, several, whole

OVERRIDES = True
ACTIONS = ("new", "run", "tune", "status", "fit", "import", "frontier", "report", "work")

SLURM = """
Slurm's own settings are --slurm.NAME VALUE: --slurm.slurm_partition gpu --slurm.timeout_min 240."""
KEYS = "Any key of a run can be set by a dotted flag (redraft list keys), for all runs of the study: --train.batch 8."
RECIPE, FOLDER, INTO = {"of": "RECIPE"}, {"of": "FOLDER"}, {"into": "folder of the study: new, empty, or its own"}
QUEUE = ("into", "workers", "device", "precision", "launcher", "json")
PARTS = {
    "new": Part(
        "Write a commented recipe to begin with, in a file that is not there yet: change it, then plan and run it.\n\n"
        "redraft study new RECIPE.toml\nredraft plan RECIPE.toml",
        ("json",), {"of": "RECIPE.toml"},
    ),
    "run": Part(
        "Train and score every run of a recipe. The same command continues, and skips what is recorded.\n\n"
        "redraft study run demo --into studies/first\n"
        "redraft study run RECIPE --into studies/first --launcher slurm --workers 16 --slurm.slurm_partition gpu\n\n"
        + KEYS + SLURM,
        QUEUE, RECIPE, INTO,
    ),
    "tune": Part(
        "A learning rate for each family and size of a recipe: every run at several rates, of which the best are written into "
        "tuned.toml, a recipe.\n\nredraft study tune RECIPE --into studies/rates --factors 0.5,1,2\n\n" + KEYS + SLURM,
        (*QUEUE, "factors"), RECIPE, INTO,
    ),
    "status": Part("Where a study stands, from any terminal.", ("watch", "json"), FOLDER),
    "fit": Part(
        "Fits of a study folder, of any CSV, JSONL or parquet with the columns family, params, tokens, flops, loss, or of "
        "published:scaling-beyond. A table without the column family is one family, called --name. It says which runs "
        "and which budgets decide L(N, D), and warns of those that move a parameter by more than its interval. The laws "
        "published:quokka and published:von-ruette are told, not fitted.",
        ("reference", "name", "resamples", "seed", "json"), {"of": "FILE|FOLDER"},
    ),
    "import": Part(
        "Records of other origin as a table that `fit` reads.\n\n"
        "redraft study import SRC --into runs.csv --columns loss=val_loss,params=n_params,family=ar",
        ("into", "columns", "take", "json"), {"of": "SRC"}, {"into": "the table to write"},
    ),
    "frontier": Part(
        "Speed and quality of each family's best run. The keys of the recipe's [frontier] can be given here: --steps "
        '"[4, 64]".\n\n'
        "redraft study frontier studies/first\nredraft study frontier studies/first --evaluator models/smollm2\n"
        "redraft study frontier studies/first --as 170M\n\n"
        "--as SIZE: what a call costs is measured here at that size, with random weights; quality by number of calls is that "
        "of the study's measured frontier. Written beside it, as frontier-as-SIZE.jsonl. --hardware a100, h100 or h200: by "
        "the serving model of a device that is not here, in place of a measurement. --batches \"[1, 16]\": rows of a call.",
        ("size_as", "hardware", "device", "precision", "compile", "json"), FOLDER,
    ),
    "report": Part(
        "report.html of a study, one page that works offline; of several, one page that compares them.",
        ("figures", "formats", "numbers", "into", "json"), FOLDER | {"others": "FOLDER"}, {"into": "the page, of several"},
    ),
    "work": Part("A worker on the queue of a study, beside those that `run` started.", ("json",), FOLDER),
}  # fmt: skip


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", help="new, run, tune, status, fit, import, frontier or report")
    parser.add_argument("of", metavar="RECIPE|FOLDER|FILE")
    parser.add_argument("others", nargs="*", type=Path, help="more studies to compare with (report)")
    parser.add_argument(
        "--into", type=Path, help="folder of the study (run, tune), table to write (import), page (report of several)"
    )
    parser.add_argument("--workers", type=whole(1, WIDEST), help="runs at a time (run)")
    parser.add_argument(
        "--factors",
        type=several(real(0, 1e6, above=True)),
        help="learning rates to try, as multiples of the recipe's: 0.25,0.5,1,2,4 (tune)",
    )
    device_flags.arguments(parser, train=True, samples=True)
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help="who works (run)")
    parser.add_argument("--watch", action="store_true", help="until all runs are settled (status)")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="save every figure here (report)")
    parser.add_argument("--formats", default="svg,pdf", help="of the figures: svg, pdf, png")
    parser.add_argument("--numbers", type=Path, metavar="FOLDER", help="save the numbers as CSV here (report)")
    parser.add_argument("--columns", help="field=column or field=constant, ..., or a .toml or .json file (import)")
    parser.add_argument("--take", default="last", help="the loss of a history: its last or its min (import)")
    parser.add_argument("--reference", default="ar", help="family that compute multipliers compare with (fit)")
    parser.add_argument(
        "--name", help="the family of a table without a column family; its file's name if left out (fit)"
    )
    parser.add_argument(
        "--as",
        dest="size_as",
        metavar="SIZE",
        help="carry the measured frontier over to models of this size: the cost of a call is measured, with random weights "
        "(frontier)",
    )
    parser.add_argument("--hardware", help="with --as: of a100, h100 or h200, by the serving model (frontier)")
    parser.add_argument("--resamples", type=whole(), default=400, help="bootstrap resamples (fit)")
    parser.add_argument("--seed", type=whole(0, 2**64 - 1), default=0, help="seed of the bootstrap (fit)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    if options.action not in ACTIONS:
        raise unknown("action of `redraft study`:", options.action, ACTIONS[:-1])
    if options.others and options.action != "report":
        raise UserError(f"`redraft study {options.action}` takes one thing, not {1 + len(options.others)}")
    if overrides and options.action not in ("run", "tune", "frontier"):
        raise unknown(f"flag of `redraft study {options.action}`:", f"--{next(iter(overrides))}", ["--json", "--into"])
    _check_where(options)
    actions = {
        "new": study_queue.new,
        "run": study_queue.run,
        "tune": study_queue.tune,
        "status": study_queue.status,
        "work": study_queue.work,
        "fit": study_results.fit,
        "import": study_results.import_table,
        "frontier": study_results.frontier,
        "report": study_results.report,
    }
    actions[options.action](options, overrides)


def _check_where(options: Namespace) -> None:
    """`UserError` where the action trains, samples or fits nothing that these flags could be for."""
    flags = (
        ("as", options.size_as, "frontier"),
        ("hardware", options.hardware, "frontier"),
        ("name", options.name, "fit"),
    )
    for flag, value, action in flags:
        if value is not None and options.action != action:
            raise UserError(f"`redraft study {options.action}` takes no --{flag}: it is for `redraft study {action}`")
    if options.hardware is not None and options.size_as is None:
        raise UserError("--hardware is for a frontier as models of another size: give --as SIZE too")
    given = [name for name in ("device", "precision", "compile") if getattr(options, name) not in (None, False)]
    takes = {"run": ("device", "precision"), "tune": ("device", "precision"), "frontier": given}
    for name in given:
        if name not in takes.get(options.action, ()):
            hint = ": to compile what trains, give --train.compile true" if options.action in ("run", "tune") else ""
            raise UserError(f"`redraft study {options.action}` takes no --{name}{hint}")
