"""The figure of a race: latency of a text alone, tokens/s of batches, and quality at one entropy where it was judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from redraft.frontier.matched_entropy import Matching
from redraft.report.theme import Figure, Row, chart_of, ends, model_keys, panel, points, words, x_axis, y_axis
from redraft.scaling.results import label, span

if TYPE_CHECKING:
    from redraft.frontier.race import Lap

TALL = 26  # pixels of a setting


def race_figure(laps: Sequence[Lap], matching: Matching | None) -> Figure:
    """A row a setting, from the median to the 99th percentile; beside it quality against tokens/s."""
    families = {lap.racer.name: lap.racer.model.family.name for lap in laps}
    latency = _spread(laps, families, [lap.latency() for lap in laps], "seconds of a text alone: p50, p90, p99", "~g")
    batch = laps[0].racer.course.batch
    rates = _spread(
        laps, families, [lap.rates() for lap in laps], f"tokens/s that 50, 90 and 99 % of batches of {batch} reach"
    )
    panels, more = [latency, rates], ""
    if matching and matching.matches:
        panels.append(_quality(matching, families))
        more = f" Right: quality at one entropy, {span(matching.entropy)} nats, with 95 % intervals."
    told = "Latency of one text alone and tokens/s of batches, sampling alone; large marks are medians."
    return Figure("race", "Speed and quality side by side", told + more, tuple(panels), len(panels))


def _spread(
    laps: Sequence[Lap], families: Mapping[str, str], found: list[list[float]], title: str, ticks: str = "~s"
) -> Any:
    rows = [
        {"family": label(lap.racer.name), "setting": _setting(lap), "x": value, "size": 90 if at == 0 else 25,
         "low": min(values), "high": max(values), "d": f"{_setting(lap)}: {value:.4g}"}
        for lap, values in zip(laps, found, strict=True) for at, value in enumerate(values)
    ]  # fmt: skip
    colour, shape = model_keys(families, legend=False)
    y = alt.Y("setting:N", title=None, sort=[_setting(lap) for lap in laps], axis=alt.Axis(labelLimit=220))
    x = x_axis(title).axis(format=ticks, tickCount=5, labelOverlap="greedy")
    rule = chart_of(rows).mark_rule(strokeWidth=1.5, aria=False).encode(alt.X("low:Q"), alt.X2("high:Q"), y, colour)
    dots = points(rows, x, y, colour, shape, alt.Size("size:Q", scale=None))
    return panel(rule, dots, width=300, height=max(120, TALL * len(laps)))


def _quality(matching: Matching, families: Mapping[str, str]) -> Any:
    rows: list[Row] = [
        {"family": label(m.name), "x": m.tokens_per_second, **ends(m.quality), "text": f"{m.steps} steps",
         "d": f"{label(m.name)}, {m.steps} steps: {span(m.quality)} nats/token"}
        for m in matching.matches
    ]  # fmt: skip
    x, y, (colour, shape) = x_axis("tokens/s"), y_axis("nats/token under the evaluator"), model_keys(families)
    rule = chart_of(rows).mark_rule(strokeWidth=1.5, aria=False).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), colour)
    return panel(
        rule, points(rows, x, y, colour, shape, size=60), words(rows, x, y, align="left", dx=7), width=300, height=240
    )


def _setting(lap: Lap) -> str:
    return f"{label(lap.racer.name)}, {lap.steps} steps"
