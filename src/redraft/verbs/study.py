"""Many runs: carry them out, see where they stand, fit scaling laws, draw the frontier, write the report.

redraft study run RECIPE --into studies/first      train and score every run (continues; skips what is recorded)
redraft study run RECIPE --into studies/first --launcher slurm --workers 16 --slurm.slurm_partition gpu --slurm.timeout_min 240
torchrun --nproc-per-node 8 -m redraft study work studies/first        eight more workers on its queue, a GPU each
redraft study tune RECIPE --into studies/rates     a learning rate for each family and size; writes tuned.toml, a recipe
redraft study status studies/first --watch         where it stands, from any terminal
redraft study fit FILE                             fits of a study folder, of any CSV, JSONL or parquet with the columns
                                                   family, params, tokens, flops, loss, or of published:scaling-beyond
redraft study import SRC --into runs.csv --columns loss=val_loss,params=n_params,family=ar      records of other origin
redraft study frontier studies/first               speed and quality of each family's best run
redraft study report studies/first                 report.html, one page that works offline
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.config import merge
from redraft.display import Line, duration, emit, quantity, tokenising
from redraft.errors import UserError, unknown

if TYPE_CHECKING:
    from redraft.studies.execute import Status
    from redraft.studies.plan import Study

OVERRIDES = True
TUNED = "tuned.toml"
ACTIONS = ("run", "tune", "status", "fit", "import", "frontier", "report", "work")


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", help="run, tune, status, fit, import, frontier or report")
    parser.add_argument("of", metavar="RECIPE|FOLDER|FILE")
    parser.add_argument("--into", type=Path, help="folder of the study (run, tune), or table to write (import)")
    parser.add_argument("--workers", type=int, help="runs at a time (run)")
    parser.add_argument("--factors", help="learning rates to try, as multiples of the recipe's: 0.25,0.5,1,2,4 (tune)")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help="who works (run)")
    parser.add_argument("--watch", action="store_true", help="until all runs are settled (status)")
    parser.add_argument("--columns", help="field=column or field=constant, ..., or a .toml or .json file (import)")
    parser.add_argument("--take", default="last", help="the loss of a history: its last or its min (import)")
    parser.add_argument("--reference", default="ar", help="family that compute multipliers compare with (fit)")
    parser.add_argument("--resamples", type=int, default=400, help="bootstrap resamples (fit)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (fit)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    if options.action not in ACTIONS:
        raise unknown("action of `redraft study`:", options.action, ACTIONS[:-1])
    if overrides and options.action not in ("run", "tune"):
        raise unknown(f"flag of `redraft study {options.action}`:", f"--{next(iter(overrides))}", ["--json", "--into"])
    {
        "run": _run,
        "tune": _tune,
        "status": _status,
        "fit": _fit,
        "import": _import,
        "frontier": _frontier,
        "report": _report,
        "work": _work,
    }[options.action](options, overrides)


def _run(options: Namespace, overrides: dict[str, Any]) -> None:
    carry_out(_table(options, overrides), _into(options), options.json, options.launcher)
    if options.json:
        from redraft.studies.execute import read_study, status

        emit([_row(s) for s in status(read_study(options.into), options.into)])


def _into(options: Namespace) -> Path:
    if options.into is None:
        raise UserError(f"study {options.action} needs --into FOLDER")
    return Path(options.into)


def _table(options: Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    """The recipe with flags over it: those of Slurm for the study, the others for every run."""
    from redraft.verbs.plan import recipe_table

    table = recipe_table(options.of, {})
    if options.workers is not None:
        table["workers"] = options.workers
    slurm = merge(table.get("slurm", {}), overrides.pop("slurm", {}))
    return merge(table, {"base": merge(table.get("base", {}), overrides)} | ({"slurm": slurm} if slurm else {}))


def _tune(options: Namespace, overrides: dict[str, Any]) -> None:
    import tomli_w

    from redraft.files import write_text
    from redraft.studies.execute import read_study, status
    from redraft.studies.tune import FACTORS, best_rates, tuned_table, tuning_sentences, tuning_table

    table, folder = _table(options, overrides), _into(options)
    factors = [_factor(word) for word in options.factors.split(",")] if options.factors else FACTORS
    carry_out(tuning_table(table, factors), folder, options.json, options.launcher, diverged=True)
    study = read_study(folder)
    losses = {s.run.name: s.loss for s in status(study, folder) if s.state == "done" and s.loss is not None}
    best = best_rates(study, losses)
    write_text(folder / TUNED, tomli_w.dumps(tuned_table(table, best)))
    if options.json:
        return emit({"rates": [asdict(b) for b in best], "recipe": str(folder / TUNED)})
    print("\n".join([*tuning_sentences(best), f"Recipe with these rates: {folder / TUNED}"]))
    return None


def _factor(word: str) -> float:
    try:
        factor = float(word)
    except ValueError:
        factor = 0.0
    if not factor > 0:
        raise UserError(f"--factors takes positive numbers such as 0.25,0.5,1,2,4; it holds {word!r}")
    return factor


def carry_out(
    table: dict[str, Any], folder: Path, quiet: bool = False, launcher: str = "local", diverged: bool = False
) -> None:
    """Plan, say the plan, train every run. `UserError` where runs failed (the others are kept), `diverged` ones apart."""
    from redraft.studies.execute import execute, open_study
    from redraft.studies.launch import Jobs, Processes
    from redraft.studies.plan import study_sentences
    from redraft.text.prepare import prepare_cached
    from redraft.text.tokenizer import load_tokenizer
    from redraft.training.budget import cpu_rate

    study = open_study(table, folder)
    if not quiet:
        print("\n".join(study_sentences(study, cpu_rate())), flush=True)
    data = study.runs[0].config.data
    prepare_cached(data.source, load_tokenizer(data.tokenizer), validation=data.validation, progress=tokenising(quiet))
    how, count = study.config, min(study.config.workers, len(study.runs))
    workers = Jobs(folder, count, how.slurm) if launcher == "slurm" else Processes(folder, count, how.gpus)
    failed = follow(study, execute(study, folder, workers), quiet)
    failed = [s for s in failed if not (diverged and s.state == "diverged")]
    if failed:
        raise UserError(f"{len(failed)} of {len(study.runs)} runs failed; {failed[0].run.name}: {failed[0].why}")


def follow(study: Study, states: Iterator[list[Status]], quiet: bool) -> list[Status]:
    """Show runs as they go: a live table on a terminal, a line for each finished run elsewhere. Returns the failed."""
    began, told = time.monotonic(), set[str]()
    now: list[Status] = []
    table = _LiveTable(study) if not quiet and Line().live else None
    try:
        for now in states:
            spent = time.monotonic() - began
            if table:
                table.show(now, spent)
            for s in now:
                if s.settled and s.run.name not in told:
                    told.add(s.run.name)
                    if not quiet and not table:
                        print(f"[{len(told)}/{len(now)}, {duration(spent)}] {_sentence(s)}", flush=True)
    finally:
        if table:
            table.close()
    return [s for s in now if s.settled and s.state != "done"]


class _LiveTable:
    """Progress by arm, and the runs under way."""

    def __init__(self, study: Study):
        from rich.live import Live

        self.total = sum(r.own.flops["full"] for r in study.runs)
        self.live = Live(refresh_per_second=4)
        self.live.start()

    def show(self, states: list[Status], spent: float) -> None:
        from rich.table import Table

        share = sum(s.run.own.flops["full"] * _share(s) for s in states) / self.total
        left = duration(spent / share * (1 - share)) if share > 0.02 else "..."
        table = Table(title=f"{share:.0%} done, {duration(spent)} gone, about {left} left", title_justify="left")
        for name in ("family", "runs done", "lowest loss", "training now"):
            table.add_column(name)
        for arm in dict.fromkeys(s.run.arm for s in sorted(states, key=lambda s: s.run.arm)):
            own = [s for s in states if s.run.arm == arm]
            losses = [s.loss for s in own if s.state == "done" and s.loss is not None]
            busy = ", ".join(f"{s.run.name} {_share(s):.0%}" for s in own if s.state == "running")
            done = sum(s.state == "done" for s in own)
            table.add_row(arm, f"{done} of {len(own)}", f"{min(losses):.3f}" if losses else "", busy)
        self.live.update(table)

    def close(self) -> None:
        self.live.stop()


def _status(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.studies.execute import read_study, status

    study = read_study(Path(options.of))
    if options.watch:
        follow(study, _looks(study, Path(options.of)), options.json)
    states = status(study, Path(options.of))
    if options.json:
        return emit([_row(s) for s in states])
    print("\n".join(_sentence(s) for s in states))
    counts = Counter(s.state for s in states)
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return None


def _looks(study: Study, folder: Path) -> Iterator[list[Status]]:
    """Where the runs stand, every second, until all are settled."""
    from redraft.studies.execute import status

    while True:
        states = status(study, folder)
        yield states
        if all(s.settled for s in states):
            return
        time.sleep(1)


def _share(s: Status) -> float:
    """Of a run's own steps, those that are done."""
    return max(0, s.step - s.run.at) / s.run.own.steps


def _fit(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.studies.fit import fit, summary
    from redraft.studies.records import load_points

    fits = fit(load_points(options.of), reference=options.reference, seed=options.seed, resamples=options.resamples)
    emit(fits.to_json()) if options.json else print("\n".join(summary(fits)))


def _import(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.studies.imports import import_into

    told = import_into(options.of, _into(options), options.columns, take=options.take)
    emit({"table": str(options.into), "notes": told}) if options.json else print("\n".join(told))


def _frontier(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.studies.execute import read_study

    folder = Path(options.of)
    if read_study(folder).config.frontier is None:
        raise UserError(f"{folder} was planned without a [frontier] table: add one to its recipe")
    rows = measure_frontier(folder, options.json)
    if options.json:
        emit(rows)


def measure_frontier(folder: Path, quiet: bool = False) -> list[dict[str, Any]]:
    """Measure what is not measured yet, a line each."""
    from redraft.studies.execute import RUNS, read_study
    from redraft.studies.samples import TEXT, measure

    study = read_study(folder)
    missing = [r.name for r in study.runs if not (folder / RUNS / r.name / "record.json").exists()]
    if missing:
        raise UserError(f"{len(missing)} runs of {folder} are not done ({missing[0]}): `redraft study run` them first")
    from redraft.files import read_json

    records = [read_json(folder / RUNS / run.name / "record.json") for run in study.runs]
    rows = []
    for row in measure(study, folder, records):
        rows.append(row)
        if not quiet and row["family"] != TEXT:
            print(
                f"{row['family']:6} {row['steps']:4} steps: {quantity(row['tokens_per_second'])} tokens/s, "
                f"{row['quality']:.3f} nats/token under the judge, entropy {row['entropy']:.2f}",
                flush=True,
            )
    return rows


def _report(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.studies.report import write_report

    path = write_report(Path(options.of))
    emit({"report": str(path)}) if options.json else print(path)


def _work(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.studies.execute import work
    from redraft.studies.launch import take_gpu

    take_gpu()
    work(Path(options.of))


def _row(s: Status) -> dict[str, Any]:
    return {
        "name": s.run.name,
        "state": s.state,
        "step": s.step,
        "steps": s.run.budget.steps,
        "loss": s.loss,
        "why": s.why,
    }


def _sentence(s: Status) -> str:
    if s.settled and s.state != "done":
        return f"{s.run.name}: {s.state}: {s.why}"
    loss = "" if s.loss is None else f", {'' if s.state == 'done' else 'training '}loss {s.loss:.4f}"
    return f"{s.run.name}: {s.state}, step {s.step} of {s.run.budget.steps}{loss}"
