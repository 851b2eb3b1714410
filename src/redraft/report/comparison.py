"""Several studies on one page: the same families side by side, and why numbers may not be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import altair as alt

from redraft.display import quantity
from redraft.errors import UserError
from redraft.files import make_folder, write_text
from redraft.report.conclusions import conclude, shown
from redraft.report.page import render
from redraft.report.report import StudyResults, results
from redraft.report.theme import (
    COLOURS,
    MARKERS,
    Figure,
    Row,
    bars,
    ends,
    level,
    lines,
    panel,
    points,
    quantity_axis,
    x_axis,
)
from redraft.scaling.results import label, ordered, span

TOLD = {"convention": "counting convention", "tokenizer": "tokenizer", "data": "training data"}


def write_comparison(folders: Sequence[str | Path], path: str | Path) -> Path:
    """One offline HTML page over several study directories; returns its path.

    Raises `UserError` for fewer than two studies, one given twice, and as `write_report` does.
    """
    studies = _named(folders)
    page = render(
        "comparison.html.j2",
        title="Studies compared",
        differences=list(_differences(studies)),
        studies={name: conclude(s.fits, s.speeds, s.matching) for name, s in studies.items()},
        figures=list(_figures(studies)),
        laws=[(name, family, fitted) for name, s in studies.items() for family, fitted in s.fits.families.items()],
        matches=[(name, m, s.matching) for name, s in studies.items() if s.matching for m in s.matching.matches],
    )
    make_folder(Path(path).parent)
    write_text(Path(path), page)
    return Path(path)


def _named(folders: Sequence[str | Path]) -> dict[str, StudyResults]:
    """Results by the folder's name, or by its path where two folders share a name."""
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2 or len({p.resolve() for p in paths}) < len(paths):
        raise UserError("a comparison needs two or more different studies")
    names = [p.resolve().name for p in paths]
    return {n if names.count(n) == 1 else str(p): results(p) for n, p in zip(names, paths)}


def _differences(studies: dict[str, StudyResults]) -> Iterator[str]:
    """What differs between the studies and so stands in the way of comparing numbers."""
    for field, what in TOLD.items():
        values = {name: next((v for p in s.points if (v := getattr(p, field))), None) for name, s in studies.items()}
        if len(set(values.values())) > 1:
            each = "; ".join(f"{name}: {str(value or 'not recorded')[:16]}" for name, value in values.items())
            effect = "exponents and multipliers" if field == "convention" else "losses per token"
            yield f"The studies differ in their {what} ({each}): do not compare {effect} across them."
    judges = {
        name: (s.speeds.judge.get("name"), s.speeds.judge.get("weights")) for name, s in studies.items() if s.speeds
    }
    if len(set(judges.values())) > 1:
        each = "; ".join(f"{name}: {judge}" for name, (judge, _) in judges.items())
        yield f"Samples were judged by different models ({each}): do not compare their quality across studies."
    levels = {name: s.matching.entropy.value for name, s in studies.items() if s.matching}
    if levels and max(levels.values()) - min(levels.values()) > 0.01:
        each = "; ".join(f"{name}: {value:.3g}" for name, value in levels.items())
        yield f"Families are matched at different entropies ({each} nats)."


def _figures(studies: dict[str, StudyResults]) -> Iterator[Figure]:
    families = ordered(list({n for s in studies.values() for n, f in s.fits.families.items() if f.laws.loss}))
    titles = {
        "loss": (
            "The best loss for a budget",
            "Loss of the optimum of each budget, a panel a family, a colour a study.",
        ),
        "params": ("The best size for a budget", "Size of the optimum of each budget."),
        "multiplier": ("Compute multipliers", "Times the compute of the reference for the same loss."),
    }
    for what, (title, caption) in titles.items():
        panels = tuple(p for n in families if (p := _family_panel(n, studies, what)))
        if panels:
            yield Figure(what, title, caption + " Bars are 95 % intervals, where they are known.", panels)
    matched = {m.family for s in studies.values() if s.matching for m in s.matching.matches}
    rows = {n: _matched_rows(n, studies) for n in ordered(list(matched))}
    if rows:
        every = (_panel(label(n), own, studies, "tokens/s", "nats/token under the judge") for n, own in rows.items())
        caption = "At the entropy of each study's own comparison."
        yield Figure("matched", "Speed and quality at one entropy", caption, tuple(every))


def _family_panel(family: str, studies: dict[str, StudyResults], what: str) -> Any:
    """One family in every study: estimates over FLOPs; None where no study has any."""
    rows: list[Row] = []
    for name, s in studies.items():
        fitted = s.fits.families.get(family)
        if fitted and what == "multiplier" and fitted.multiplier:
            found = [(r.flops, r.multiplier) for r in fitted.multiplier.ratios]
        elif fitted and what != "multiplier":
            found = [(m.flops, getattr(m, what)) for m in shown(fitted)]
        else:
            continue
        for flops, value in found:
            says = f"{name}: {label(family)} at {quantity(flops, 'FLOPs')}, {span(value, 4)}"
            rows.append({"study": name, "x": flops, **ends(value), "d": says})
    titles = {
        "loss": "best loss, nats/token",
        "params": "best size N*, parameters",
        "multiplier": "times the reference",
    }
    return (
        _panel(label(family), rows, studies, "training FLOPs", titles[what], one=what == "multiplier") if rows else None
    )


def _matched_rows(family: str, studies: dict[str, StudyResults]) -> list[Row]:
    return [
        {"study": name, "x": m.tokens_per_second, **ends(m.quality),
         "d": f"{name}: {label(family)} in {m.steps} steps, batch {m.batch}, {span(m.quality)} nats/token"}
        for name, s in studies.items() if s.matching for m in s.matching.matches if m.family == family
    ]  # fmt: skip


def _panel(title: str, rows: list[Row], studies: dict[str, StudyResults], x: str, y: str, one: bool = False) -> Any:
    names = list(studies)
    key = alt.Legend(title=None, orient="top", columns=3, symbolOpacity=1)
    hues, markers = ([v for v, _ in zip(cycle(values), names)] for values in (COLOURS, MARKERS))
    colour = alt.Color("study:N", scale=alt.Scale(domain=names, range=hues), legend=key)
    shape = alt.Shape("study:N", scale=alt.Scale(domain=names, range=markers), legend=key)
    along, up = x_axis(x), quantity_axis(y)
    layers = [
        lines(rows, along, up, colour),
        bars(rows, along, colour),
        points(rows, along, up, colour, shape, size=60),
    ]
    return panel(*([level(1.0)] if one else []), *layers, title=title)
