"""Figures of the speed-quality frontier: quality and entropy against speed, each other, and at matched entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from redraft.display import quantity
from redraft.frontier.matched_entropy import Match, Matching
from redraft.frontier.pareto import Frontier, Speed
from redraft.frontier.pareto import frontier as placed
from redraft.report.conclusions import in_steps
from redraft.report.theme import (
    FAINT,
    INK,
    Figure,
    Row,
    band,
    bars,
    chart_of,
    ends,
    family_keys,
    level,
    lines,
    panel,
    points,
    words,
    x_axis,
    y_axis,
)
from redraft.scaling.results import label, ordered, span

QUALITY, ENTROPY = "nats/token under the judge (lower is better)", "entropy of a sample, nats"


def speed_figures(speeds: Frontier, matching: Matching | None = None) -> list[Figure]:
    drawn = [frontier_figure(speeds)]
    if any(place.speed.temperature != 1 or place.speed.top_p != 1 for place in speeds.places):
        drawn.append(entropy_figure(speeds, matching))
    if matching and matching.matches:
        drawn.append(matched_figure(speeds, matching))
    return drawn


def setting(s: Speed) -> str:
    """'Duo in 16 steps at T 0.9, batch 32'."""
    return f"{in_steps(s)}, batch {s.batch}"


def _says(s: Speed) -> str:
    return (
        f"{setting(s)}: {quantity(s.tokens_per_second)} tokens/s, {s.quality:.3f} ± {s.quality_se:.3f} nats/token, "
        f"entropy {s.entropy:.3f} ± {s.entropy_se:.3f}"
    )


def frontier_figure(speeds: Frontier) -> Figure:
    """Quality and entropy of samples against tokens per second, with the Pareto front and real text's values."""
    names, x = _names(speeds), x_axis("tokens/s")
    own = {name: _own_front(speeds, name) for name in names}
    best = {id(s) for front in own.values() for s in front}
    rows = [_row(place.speed, id(place.speed) in best) for place in speeds.places]
    joined = [_row(s, True) for front in own.values() for s in front]
    steps_down = [{"x": rate, **ends(value)} for rate, value in speeds.envelope()]
    real = speeds.real
    left = [
        band(steps_down, x, color=FAINT, opacity=0.35, interpolate="step-before"),
        lines(steps_down, x, alt.Y("y:Q"), color=FAINT, strokeWidth=4, opacity=0.35, interpolate="step-before"),
        *_layers(rows, joined, names, x, "quality", QUALITY),
    ]
    right = _layers(rows, joined, names, x, "entropy", ENTROPY)
    if len(joined) <= 40:
        left.append(words(joined, x, alt.Y("quality:Q"), dx=9, dy=-7))
    if real:
        left += _real_level(real.quality, rows)
        right = [_real_band(real.entropy, real.entropy_se), *_real_level(real.entropy, rows), *right]
    return Figure(
        "frontier",
        "Speed and quality of samples",
        "Left: nats per token under the judge against tokens per second; lines join what is best of each family, numbered by "
        "sampling steps, faint points are its other settings. Grey: the best quality at that speed or more, with its 95 % "
        "interval. Right: entropy of the same samples. Dashed: held-out text, with two standard errors. Good quality at an "
        "entropy below that of text is dull text, not good text.",
        (panel(*left, height=310), panel(*right, height=310)),
    )


def entropy_figure(speeds: Frontier, matching: Matching | None) -> Figure:
    """Quality against entropy as temperature or top-p is swept: a curve each family and number of steps."""
    names, kept = _names(speeds), list({place.speed.key: place.speed for place in speeds.places}.values())
    rows = [_row(s, True) | {"curve": f"{s.name} {s.steps} {s.top_p}", "x": s.entropy} for s in kept]
    x, y, (colour, shape) = x_axis(ENTROPY, type="linear"), y_axis(QUALITY, "quality"), family_keys(names, names)
    layers = [
        lines(rows, x, y, colour, alt.Detail("curve:N"), alt.Order("x:Q"), strokeWidth=1.2),
        bars(
            [row | {"low": row["quality_low"], "high": row["quality_high"]} for row in rows], x, colour, strokeWidth=1
        ),
        points(rows, x, y, colour, shape, size=45),
    ]
    if matching:
        at = chart_of([{"x": matching.entropy.value}]).mark_rule(color=INK, strokeDash=[5, 4], aria=False)
        layers.insert(0, at.encode(alt.X("x:Q")))
    if speeds.real:
        text = {"x": speeds.real.entropy, "quality": speeds.real.quality, "d": "held-out text"}
        layers.append(points([text], x, y, color=INK, shape="cross", angle=45, size=110))
    return Figure(
        "entropy",
        "Quality against variety",
        "Nats per token under the judge against the entropy of samples; a curve joins the temperatures (or top-p) of one "
        "family and number of steps, bars are two standard errors. Lower and further right is better. Cross: held-out text. "
        "Dashed: the entropy at which families are compared.",
        (panel(*layers, height=300),),
    )


def matched_figure(speeds: Frontier, matching: Matching) -> Figure:
    """Quality at the common entropy against tokens per second, with intervals."""
    names, x = _names(speeds), x_axis("tokens/s")
    rows = [
        {"family": label(m.family), "x": m.tokens_per_second, **ends(m.quality), "text": str(m.steps), "batch": m.batch,
         "d": matched_words(m)}
        for m in matching.matches
    ]  # fmt: skip
    y, (colour, shape) = y_axis(QUALITY), family_keys(names, names)
    layers = [
        lines(rows, x, y, colour, alt.Detail("batch:N"), strokeWidth=1),
        bars(rows, x, colour),
        points(rows, x, y, colour, shape, size=60),
    ]
    if len(rows) <= 40:
        layers.append(words(rows, x, y, dx=9, dy=-7))
    if speeds.real:
        layers += [level(speeds.real.quality, color=INK, strokeDash=[5, 4])]
    whose = "the stated entropy" if matching.stated else "the entropy of held-out text"
    return Figure(
        "matched",
        "Speed and quality at one entropy",
        f"Each family and number of steps interpolated over its temperatures (or top-p) to {whose}, "
        f"{span(matching.entropy)} nats: 95 % intervals over samples. Lines join one batch size; the numbers are steps. "
        "Dashed: held-out text.",
        (panel(*layers, height=300),),
    )


def matched_words(m: Match) -> str:
    knob = "T" if m.knob == "temperature" else "top-p"
    return (
        f"{label(m.family)} in {m.steps} steps, batch {m.batch}, {knob} {m.at:.2f}: "
        f"{quantity(m.tokens_per_second)} tokens/s, {span(m.quality)} nats/token"
    )


def _names(speeds: Frontier) -> list[str]:
    return ordered(list({place.speed.family for place in speeds.places}))


def _own_front(speeds: Frontier, family: str) -> list[Speed]:
    """The settings of a family that none of its own beats."""
    own = placed([place.speed for place in speeds.places if place.speed.family == family])
    return [place.speed for place in own if place.optimal]


def _row(s: Speed, best: bool) -> Row:
    row = {
        "family": label(s.family),
        "x": s.tokens_per_second,
        "text": str(s.steps),
        "d": _says(s),
        "o": 1 if best else 0.3,
    }
    for what, value, error in (("quality", s.quality, s.quality_se), ("entropy", s.entropy, s.entropy_se)):
        row |= {what: value, f"{what}_low": value - 2 * error, f"{what}_high": value + 2 * error}
    return row


def _layers(rows: Sequence[Row], joined: Sequence[Row], names: list[str], x: alt.X, what: str, title: str) -> list[Any]:
    y, (colour, shape) = y_axis(title, what), family_keys(names, names)
    spans = [row | {"low": row[f"{what}_low"], "high": row[f"{what}_high"]} for row in joined]
    return [
        lines(joined, x, y, colour),
        bars(spans, x, colour, strokeWidth=1),
        points(rows, x, y, colour, shape, alt.Opacity("o:Q", scale=None)),
    ]


def _real_level(value: float, rows: Sequence[Row]) -> list[Any]:
    row = {"y": value, "x": max(r["x"] for r in rows), "text": "held-out text"}
    return [level(value, color=INK, strokeDash=[5, 4]), words([row], alt.X("x:Q"), alt.Y("y:Q"), align="right", dy=-7)]


def _real_band(value: float, error: float) -> alt.Chart:
    rows = chart_of([{"low": value - 2 * error, "high": value + 2 * error}])
    return rows.mark_rect(color=FAINT, opacity=0.25, aria=False).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
