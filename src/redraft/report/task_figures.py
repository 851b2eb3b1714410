"""Figures of tasks: the reversal curse and puzzles by family, and quality against time on text of known entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from redraft.files import make_folder
from redraft.report.theme import Figure, bars, family_keys, level, lines, panel, points, y_axis
from redraft.scaling.results import label
from redraft.tasks.table import cell

KINDS = {"forward": "same direction, other words", "reversed": "reversed", "infill": "infilled in the trained order"}


def reversal_figure(summary: Sequence[Mapping[str, Any]]) -> Figure:
    """The share right of each family at the longest training, with its interval: one panel a kind of question."""
    most = max(row["steps"] for row in summary)
    shown = [row for row in summary if row["steps"] == most]
    names = list(dict.fromkeys(row["family"] for row in shown))
    x = alt.X("family:N", title=None, sort=[label(name) for name in names], axis=alt.Axis(labelAngle=0))
    y = alt.Y("y:Q", title="share right", scale=alt.Scale(domain=[0, 1]))
    colour, shape = family_keys(names, names, legend=False)
    panels = []
    for kind, title in KINDS.items():
        rows = [
            {"family": label(row["family"]), "y": row[kind]["value"], "low": row[kind]["low"], "high": row[kind]["high"],
             "d": f"{label(row['family'])}: {cell(row[kind])}"}
            for row in shown if row[kind]
        ]  # fmt: skip
        drawn = points(rows, x, y, colour, shape, size=90)
        panels.append(panel(bars(rows, x, colour), drawn, title=title, width=190, height=210))
    people = "as sure as if each person were asked once"
    return Figure(
        "reversal",
        "The reversal curse",
        f"After {most} steps; bars are 95 % Wilson intervals, {people}.",
        tuple(panels),
        3,
    )


def speed_figure(found: Mapping[str, Any]) -> Figure:
    """Nats under the source against a thread's seconds: in batches, and alone; the dashed line is the source's entropy."""
    rows = [row for row in found["settings"] if row["sampler"]]
    family = {run["model"]: run["family"] for run in found["runs"]}
    names = list(dict.fromkeys(family[row["model"]] for row in rows))
    colour, shape = family_keys(names, names)
    panels = []
    for key, title in (("cpu_seconds", f"batches of {rows[0]['batch']}"), ("cpu_latency", "one text alone")):
        placed = [
            {"family": label(family[row["model"]]), "curve": f"{row['model']} {row['sampler']}",
             "x": row[key], "y": row["nats"],
             "d": f"{row['model']} {row['sampler']} {row['steps']}: {row[key]:.3f} s, {row['nats']:.3f} nats/token"}
            for row in rows
        ]  # fmt: skip
        scale, axis = alt.Scale(type="log", nice=False, padding=16), alt.Axis(format="~g", labelOverlap="greedy")
        x = alt.X("x:Q", title="seconds of one thread", scale=scale, axis=axis)
        y = y_axis("nats/token under the source")
        curves = lines(placed, x, y, colour, alt.Detail("curve:N"))
        entropy = level(found["source"]["entropy"])
        panels.append(panel(entropy, curves, points(placed, x, y, colour, shape), title=title))
    return Figure(
        "speed", "Speed and quality on text of known entropy", "Dashed: the entropy of the source.", tuple(panels)
    )


def puzzle_figure(summary: Sequence[Mapping[str, Any]]) -> Figure:
    """The share right of each family with its interval: one panel a group, against sampling steps where there are
    several. Of several numbers of training steps the largest."""
    names = list(dict.fromkeys(row["family"] for row in summary))
    longest = max(row["steps"] for row in summary)
    summary = [row for row in summary if row["steps"] == longest]
    colour, shape = family_keys(names, names)
    taken = sorted({row["sampling_steps"] for row in summary})
    many = len(taken) > 1
    if many:
        scale, axis = alt.Scale(type="log", nice=False, padding=12), alt.Axis(values=taken, format="d")
        x = alt.X("x:Q", title="sampling steps", scale=scale, axis=axis)
    else:
        x = alt.X("family:N", title=None, sort=[label(name) for name in names], axis=alt.Axis(labelAngle=0))
    y = alt.Y("y:Q", title="share right", scale=alt.Scale(domain=[0, 1]))
    panels = []
    for group in dict.fromkeys(row["group"] for row in summary):
        rows = [
            {"family": label(row["family"]), "curve": row["family"], "x": row["sampling_steps"], "y": row["right"]["value"],
             "low": row["right"]["low"], "high": row["right"]["high"],
             "d": f"{label(row['family'])}: {cell(row['right'])}"}
            for row in summary if row["group"] == group
        ]  # fmt: skip
        layers = [bars(rows, x, colour), points(rows, x, y, colour, shape, size=60)]
        layers = [lines(rows, x, y, colour, alt.Detail("curve:N")), *layers] if many else layers
        panels.append(panel(*layers, title=group, width=190, height=210))
    said = "Share of right answers to questions that were not trained on; bars are 95 % Wilson intervals."
    return Figure("puzzle", "Right answers", said, tuple(panels), min(4, len(panels)))


def save(figure: Figure, folder: Path) -> Path:
    make_folder(folder)
    path = folder / f"{figure.name}.svg"
    figure.save(path)
    return path
