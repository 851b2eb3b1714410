"""A study's figures and numbers as files for a paper: SVG, PDF, PNG and CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.files import make_folder, write_csv
from redraft.frontier.matched_entropy import Matching
from redraft.frontier.pareto import Frontier
from redraft.report.figures import residuals
from redraft.report.report import results
from redraft.scaling.laws.multiplier import Estimate, PowerLaw
from redraft.scaling.results import Fits

FORMATS = ("svg", "pdf", "png")

Row = dict[str, Any]


def save_figures(study: str | Path, into: str | Path, formats: Sequence[str] = ("svg", "pdf")) -> list[Path]:
    """Every figure of a study's report in `into`, one file a format; returns the paths. `UserError` for other formats."""
    from redraft.report.answer import answer_figure
    from redraft.report.figures import figures

    wrong = [form for form in formats if form not in FORMATS]
    if wrong:
        raise UserError(f"figures cannot be written as {wrong[0]!r}: choose from {', '.join(FORMATS)}")
    found, paths = results(study), list[Path]()
    make_folder(Path(into))
    for figure in [answer_figure(found.fits), *figures(found.points, found.fits, found.speeds, found.matching)]:
        for form in formats:
            path = Path(into) / f"{figure.name}.{form}"
            figure.save(path)
            paths.append(path)
    return paths


def save_numbers(study: str | Path, into: str | Path) -> list[Path]:
    """The numbers of a study as CSV files in `into`, those that there are; returns the paths.

    Losses are nats per token, budgets FLOPs; of an estimate `x` stand x, x_low and x_high, its 95 % interval.
    """
    found = results(study)
    points = [_flat(p) for p in found.points]
    left = [{k: row[k] for k in ("name", "family", "parabola", "law")} for row in residuals(found.points, found.fits)]
    tables = {"runs": points, "residuals": left, **_fits(found.fits), **_speeds(found.speeds, found.matching)}
    make_folder(Path(into))
    paths = []
    for name, rows in tables.items():
        if rows:
            paths.append(Path(into) / f"{name}.csv")
            write_csv(paths[-1], rows)
    return paths


def _fits(fits: Fits) -> dict[str, list[Row]]:
    families = fits.families.items()
    return {
        "minima": [{"family": n, **_flat(m)} for n, f in families for m in f.laws.minima],
        "laws": [row for n, f in families for row in _laws(n, f.laws)],
        "parametric": [{"family": n, **_flat(f.parametric)} for n, f in families if f.parametric.law],
        "influence": [
            {"family": n, **_flat(w)}
            for n, f in families
            if (i := f.influence)
            for w in (*i.runs, *i.budgets, *i.groups.values())
        ],
        "multipliers": [{"family": n, **_flat(r)} for n, f in families if f.multiplier for r in f.multiplier.ratios],
        "conventions": [_flat(row) for row in fits.conventions],
        "pairs": [_flat(pair) | (_estimate("factor", pair.factor.value) if pair.factor else {}) for pair in fits.pairs],
    }


def _laws(family: str, isoflop: Any) -> Iterator[Row]:
    for of in ("params", "tokens", "loss"):
        law = getattr(isoflop, of)
        if isinstance(law, PowerLaw):
            yield {"family": family, "of": of, **_flat(law)}


def _speeds(speeds: Frontier | None, matching: Matching | None) -> dict[str, list[Row]]:
    if not speeds:
        return {}
    settings = [{**_flat(p.speed), "optimal": p.optimal, "share": p.share} for p in speeds.places]
    matches = [_flat(m) for m in matching.matches] if matching else []
    real = [_flat(speeds.real)] if speeds.real else []
    level = _estimate("entropy", matching.entropy) if matching else {}
    return {"frontier": settings, "text": real, "matched": [level | row for row in matches]}


def _flat(value: Any) -> Row:
    """A dataclass as cells: estimates in three, tuples of numbers or words in one; what has parts of its own is left out."""
    row: Row = {}
    for name in (f.name for f in fields(value)):
        cell = getattr(value, name)
        if isinstance(cell, Estimate):
            row |= _estimate(name, cell)
        elif isinstance(cell, tuple) and all(isinstance(part, (str, int, float)) for part in cell):
            row[name] = "; ".join(map(str, cell))
        elif cell is None or isinstance(cell, (str, int, float)):
            row[name] = cell
    return row


def _estimate(name: str, of: Estimate) -> Row:
    return {name: of.value, f"{name}_low": of.low, f"{name}_high": of.high}
