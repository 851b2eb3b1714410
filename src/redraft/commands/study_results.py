"""`redraft study` fit, import, frontier, report: what was recorded."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.commands import device_flags
from redraft.commands.study_queue import into
from redraft.display import emit, quantity
from redraft.errors import UserError, require

if TYPE_CHECKING:
    from redraft.evaluation.compute import Compute
    from redraft.planning.frontier import FrontierConfig


def fit(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.scaling import fit as fitting
    from redraft.scaling.published.laws import law_json, law_lines, published_law
    from redraft.scaling.records import load_points
    from redraft.scaling.schema import to_json
    from redraft.scaling.summary import summary

    if law := published_law(str(options.of)):
        return emit(law_json(law)) if options.json else print("\n".join(law_lines(law)))
    points = load_points(options.of, options.name)
    fits = fitting.fit(points, reference=options.reference, seed=options.seed, resamples=options.resamples)
    return emit(to_json(fits)) if options.json else print("\n".join(summary(fits)))


def import_table(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.scaling.import_runs import import_into

    told = import_into(options.of, into(options), options.columns, take=options.take)
    emit({"table": str(options.into), "notes": told}) if options.json else print("\n".join(told))


def frontier(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.config import validated
    from redraft.planning.frontier import FrontierConfig
    from redraft.studies.execute import read_study

    folder = Path(options.of)
    if options.size_as is not None:
        _carried(folder, options, overrides)
        return
    planned = read_study(folder).config.frontier
    table = {} if planned is None else planned.model_dump()
    settings = table | _plain(overrides)
    if "judge" not in settings:
        raise UserError(f"{folder} was planned without a [frontier] table: name a judge by --evaluator MODEL")
    compute = device_flags.compute(options)
    rows = measure_frontier(folder, compute, options.json, validated(FrontierConfig, settings))
    if options.json:
        emit(rows)


def _carried(folder: Path, options: Namespace, overrides: dict[str, Any]) -> None:
    """The measured frontier, with the cost of a call at another size: measured here, or modelled for other hardware."""
    from redraft.config import validated
    from redraft.frontier.carried import carried_file, carried_sentence, carry, cost_sentence, left, matched
    from redraft.frontier.measure import read_rows
    from redraft.frontier.served import serve, served_sentence
    from redraft.network.sizes import from_size
    from redraft.planning.frontier import FrontierConfig
    from redraft.planning.serving_cost import hardware
    from redraft.report.conclusions import matched_lines
    from redraft.studies.execute import read_study

    if stray := overrides.keys() - {"batches"}:
        raise UserError(f"--as takes the settings of the measured frontier but for --batches, so no --{min(stray)}")
    size, file = options.size_as, carried_file(options.size_as, options.hardware or "")
    from_size(size, "dit", 1)  # known, or refused before anything is loaded
    planned = read_study(folder).config.frontier
    batches = validated(FrontierConfig, {"judge": "", **overrides}).batches
    if options.hardware:
        device = hardware(options.hardware)
        told = served_sentence(rows := serve(folder, size, device, batches), device)
    else:
        new = left(folder, size, batches)
        if new and not options.json:
            print(cost_sentence(new, size), flush=True)
        for row in carry(folder, size, device_flags.compute(options), batches):
            if not options.json:
                print(_line(row), flush=True)
        told = carried_sentence(rows := read_rows(folder / file))
    if options.json:
        emit(rows)
        return
    print(told)
    for batch, found in matched(folder, file, planned.entropy if planned else None).items():
        lines = matched_lines(found) if found.matches else ["No curve reaches the entropy."]
        print("\n".join([f"{batch} row{'s' * (batch > 1)} a call:", *lines]))


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['family']:6} {row['steps']:4} steps, T {row['temperature']:g}, top-p {row['top_p']:g}, "
        f"batch {row['batch']}: {quantity(row['tokens_per_second'])} tokens/s, "
        f"{row['quality']:.3f} nats/token under the judge, entropy {row['entropy']:.2f}"
    )


def _plain(overrides: dict[str, Any]) -> dict[str, Any]:
    """Flags under the names of [frontier]: --steps and --length are short for keys of a run elsewhere, and --evaluator is what
    `race` calls the judge."""
    budget, data = overrides.pop("budget", {}), overrides.pop("data", {})
    stray = [key for key in (*budget, *data) if key not in ("steps", "length")]
    if stray:
        raise UserError(f"`redraft study frontier` takes the keys of [frontier], not {stray[0]}")
    steps = budget.get("steps")
    short = {
        "steps": [steps] if isinstance(steps, int) else steps,
        "length": data.get("length"),
        "judge": overrides.pop("evaluator", None),
    }
    return overrides | {key: value for key, value in short.items() if value is not None}


def measure_frontier(
    folder: Path, compute: Compute, quiet: bool = False, settings: FrontierConfig | None = None
) -> list[dict[str, Any]]:
    """Measure what is not measured yet, a line each."""
    from redraft.frontier.measure import TEXT, measure
    from redraft.studies.execute import RUNS, read_study

    study = read_study(folder)
    missing = [r.name for r in study.runs if not (folder / RUNS / r.name / "record.json").exists()]
    if missing:
        raise UserError(f"{len(missing)} runs of {folder} are not done ({missing[0]}): `redraft study run` them first")
    from redraft.files import read_json

    records = [read_json(folder / RUNS / run.name / "record.json") for run in study.runs]
    rows = []
    for row in measure(study, folder, records, compute, settings):
        rows.append(row)
        if not quiet and row["family"] != TEXT:
            print(_line(row), flush=True)
    return rows


def report(options: Namespace, overrides: dict[str, Any]) -> None:
    require("a report", "figures", "altair", "vl_convert")
    from redraft.report.comparison import write_comparison
    from redraft.report.exports import save_figures, save_numbers
    from redraft.report.report import write_report

    folder = Path(options.of)
    if options.others:
        path = write_comparison([folder, *options.others], options.into or Path("comparison.html"))
    else:
        path = write_report(folder)
        if options.figures:
            save_figures(folder, options.figures, options.formats.split(","))
        if options.numbers:
            save_numbers(folder, options.numbers)
    emit({"report": str(path)}) if options.json else print(path)
