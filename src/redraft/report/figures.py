"""Figures of a study's losses: IsoFLOP curves, optima, residuals, conventions, multipliers, paired arms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from redraft.display import quantity
from redraft.frontier.matched_entropy import Matching
from redraft.frontier.pareto import Frontier
from redraft.report.conclusions import shown
from redraft.report.speed_figures import speed_figures
from redraft.report.theme import (
    FAINT,
    INK,
    Figure,
    Row,
    aside,
    band,
    bars,
    chart_of,
    colours,
    ends,
    family_keys,
    flops_axis,
    level,
    lines,
    panel,
    points,
    quantity_axis,
    words,
    x_axis,
    y_axis,
)
from redraft.scaling.laws.isoflop import Minimum
from redraft.scaling.laws.multiplier import PowerLaw
from redraft.scaling.records import Point, with_budgets
from redraft.scaling.results import FamilyFit, Fits, Pair, label, span


def figures(
    runs: Sequence[Point], fits: Fits, speeds: Frontier | None = None, matching: Matching | None = None
) -> list[Figure]:
    """Every figure that the data allow, in the order of a report."""
    drawn: list[Figure] = []
    fitted = {name: family for name, family in fits.families.items() if family.laws.loss}
    if fitted:
        drawn += [isoflop_figure(runs, fits, fitted), optima_figure(fits, fitted)]
    if any(family.multiplier for family in fits.families.values()):
        drawn.append(multiplier_figure(fits))
    if fits.conventions:
        drawn.append(conventions_figure(fits))
    if fitted:
        drawn.append(residual_figure(runs, fits))
    if fits.pairs:
        drawn.append(pairs_figure(fits))
    return [figure for figure in drawn if figure.panels] + (speed_figures(speeds, matching) if speeds else [])


def told(p: Point) -> str:
    """A run in a few words: what a point says when it is pointed at."""
    error = f" ± {p.loss_se:.4f}" if p.loss_se else ""
    return f"{p.name or label(p.family)}: N {quantity(p.params)}, D {quantity(p.tokens)}, loss {p.loss:.4f}{error}"


def isoflop_figure(runs: Sequence[Point], fits: Fits, fitted: Mapping[str, FamilyFit]) -> Figure:
    """Loss against size, a panel a family, a parabola a budget, minima marked and joined."""
    runs = with_budgets(runs)
    panels = [_isoflop_panel(n, family, [p for p in runs if p.family == n], fits) for n, family in fitted.items()]
    minima = [m for family in fitted.values() for m in shown(family)]
    curved, sure = any(m.parabola for m in minima), any(m.params.low and m.params.high for m in minima)
    curves = "each curve is one budget, a parabola in the logarithm of size, darker" if curved else "points are darker"
    marks = (
        f"the minima{', with 95 % intervals of size' * sure}, or, where the sizes do not bracket one, "
        if curved
        else ""
    )
    return Figure(
        "isoflop",
        "The best size for a budget",
        f"Held-out loss against parameters; {curves} for a larger budget. Crosses mark {marks}the lowest run of a budget.",
        tuple(panels),
    )


def _isoflop_panel(name: str, family: FamilyFit, runs: Sequence[Point], fits: Fits) -> Any:
    colour, minima = colours(fits.families)[name], shown(family)
    shade = {m.budget: 0.4 + 0.6 * (i + 1) / len(minima) for i, m in enumerate(minima)}
    bent = [m for m in minima if m.parabola and m.parabola[2] > 0]  # upwards: others have no minimum
    curves = [[row | {"o": shade[m.budget]} for row in _parabola(m, runs)] for m in bent]
    dots = [{"x": p.params, "y": p.loss, "o": shade[p.budget], "d": told(p)} for p in runs if p.budget in shade]
    best = [{"x": m.params.value, "y": m.loss.value, "d": _minimum(m)} for m in minima]
    sure = [m for m in minima if m.params.low and m.params.high]
    spans = [{"x": m.params.low, "x2": m.params.high, "y": m.loss.value} for m in sure]
    tags = (
        [curve[-1] | {"text": quantity(m.budget, "FLOPs")} for m, curve in zip(bent, curves)] if len(curves) < 9 else []
    )
    x, y, opacity = x_axis("parameters"), y_axis("loss, nats/token"), alt.Opacity("o:Q", scale=None)
    return panel(
        lines(best, x, y, color=INK, strokeDash=[3, 3], strokeWidth=1),
        lines(
            [row for curve in curves for row in curve], x, y, opacity, alt.Detail("o:Q"), color=colour, strokeWidth=2
        ),
        points(dots, x, y, opacity, color=colour, size=40),
        chart_of(spans).mark_rule(color=INK, strokeWidth=1.5, aria=False).encode(x, alt.X2("x2:Q"), y),
        points(best, x, y, color=INK, shape="cross", angle=45, size=80),
        words(tags, x, y, align="right", dx=6, dy=-12),
        title=label(name),
        colour=colour,
    )


def _minimum(m: Minimum) -> str:
    flags = f" ({', '.join(m.flags)})" if m.flags else ""
    return f"best at {quantity(m.budget, 'FLOPs')}: N* {quantity(m.params.value)}, loss* {span(m.loss, 4)}{flags}"


def _parabola(minimum: Minimum, runs: Sequence[Point]) -> list[Row]:
    assert minimum.parabola
    a, b, c = minimum.parabola
    sizes = np.log([p.params for p in runs if p.budget == minimum.budget])
    x = np.linspace(sizes.min(), sizes.max(), 40)
    return [{"x": float(np.exp(u)), "y": float(a + b * u + c * u * u)} for u in x]


def optima_figure(fits: Fits, fitted: Mapping[str, FamilyFit]) -> Figure:
    """Best size and best loss against FLOPs with the fitted power laws, log-log."""
    parts = {"params": "best size N*, parameters", "loss": "best loss, nats/token"}
    drawn = [part for part in parts if any(getattr(family.laws, part) for family in fitted.values())]
    optima = [getattr(m, part) for part in drawn for family in fitted.values() for m in shown(family)]
    spans = " Bars are 95 % intervals of each optimum, set side by side; bands join them."
    return Figure(
        "laws",
        f"How the best {'size and the best loss grow' if len(drawn) > 1 else 'loss falls'} with compute",
        "Optima of each budget against training FLOPs, with the power law of each family; all axes are logarithmic."
        + spans * any(value.low is not None for value in optima),
        tuple(_optima_panel(fits, fitted, part, parts[part]) for part in drawn),
    )


def _optima_panel(fits: Fits, fitted: Mapping[str, FamilyFit], part: str, title: str) -> Any:
    laws = {name: law for name, family in fitted.items() if isinstance(law := getattr(family.laws, part), PowerLaw)}
    rows = [
        {"family": label(n), "x": m.flops * aside(n, laws), **ends(getattr(m, part)), "d": f"{label(n)}: {_minimum(m)}"}
        for n in laws
        for m in shown(fits.families[n])
    ]
    budgets = [m.budget for n in laws for m in shown(fits.families[n])]
    flops = np.geomspace(min(budgets) / 1.25, 1.25 * max(budgets), 30)
    drawn = [{"family": label(name), "x": float(c), "y": float(law.at(c))} for name, law in laws.items() for c in flops]
    x, y, (colour, shape) = (flops_axis(budgets), quantity_axis(title), family_keys(fits.families, laws))
    return panel(
        band(rows, x, colour),
        lines(drawn, x, y, colour),
        bars(rows, x, colour),
        points(rows, x, y, colour, shape, size=70),
    )


def multiplier_figure(fits: Fits) -> Figure:
    """Compute multiplier per budget with interval bars; hollow where it rests on the reference's law."""
    ratios = {name: family.multiplier for name, family in fits.families.items() if family.multiplier}
    reference, rows = label(fits.reference), list[Row]()
    for name, k in ratios.items():
        for r in k.ratios:
            says = (
                f"{label(name)} at {quantity(r.flops, 'FLOPs')}: {span(r.multiplier)} times the compute of {reference}"
            )
            place = {"family": label(name), "x": r.flops * aside(name, ratios), "law": r.extrapolated}
            rows.append(place | ends(r.multiplier) | {"d": says})
    within, beyond = ([row for row in rows if row["law"] is law] for law in (False, True))
    x = flops_axis(r.flops for k in ratios.values() for r in k.ratios)
    y, (colour, shape) = y_axis(f"times the compute of {reference}", type="log"), family_keys(fits.families, ratios)
    layers = (
        level(1.0), band(rows, x, colour), lines(rows, x, y, colour, strokeWidth=1), bars(rows, x, colour, strokeWidth=2),
        points(within, x, y, colour, shape, size=70),
        points(beyond, x, y, colour, shape, size=70, filled=False, fill="white", strokeWidth=2),
    )  # fmt: skip
    return Figure(
        "multiplier",
        f"Compute needed for the loss of {reference}",
        f"How many times the training compute of {reference} a family needs for the same loss, with 95 % intervals. "
        f"Hollow: {reference} never had that loss, and the value rests on its power law.",
        (panel(*layers),),
    )


def conventions_figure(fits: Fits) -> Figure:
    """The exponent of N* and the multiplier of every family under every counting convention."""
    names = [name for name in fits.families if any(row.family == name for row in fits.conventions)]
    parts = {"size_exponent": "exponent a of N*", "multiplier": f"times the compute of {label(fits.reference)}"}
    panels = []
    for part, title in parts.items():
        rows = [
            {"family": label(row.family), "x": row.convention, **ends(value),
             "d": f"{label(row.family)} counted as {row.convention}: {span(value)}"}
            for row in fits.conventions if (value := getattr(row, part)) is not None
        ]  # fmt: skip
        if rows:
            colour, shape = family_keys(fits.families, names)
            x = alt.X("x:N", title="FLOPs and parameters counted as", axis=alt.Axis(labelAngle=0))
            beside = alt.XOffset("family:N", sort=[label(n) for n in names])
            y = y_axis(title, type="log" if part == "multiplier" else "linear")
            panels.append(panel(bars(rows, x, beside, colour), points(rows, x, beside, y, colour, shape, size=60)))
    return Figure(
        "conventions",
        "What depends on how one counts",
        "The same runs under each counting convention, with 95 % intervals: an exponent belongs to its convention.",
        tuple(panels),
    )


def residual_figure(runs: Sequence[Point], fits: Fits) -> Figure:
    """What the fitted curves leave: loss less the parabola of its budget, and less L(N, D)."""
    rows = list(residuals(runs, fits))
    parts = {"parabola": "loss less its parabola, nats/token", "law": "loss less L(N, D), nats/token"}
    says = {
        "parabola": "the parabola of the run's own budget",
        "law": "L(N, D) = E + A/N^α + B/D^β fitted to all runs of a family",
    }
    names, panels, against = list(fits.families), list[Any](), list[str]()
    for part, title in parts.items():
        kept = [row | {"family": label(row["family"]), "y": row[part]} for row in rows if row[part] is not None]
        if kept:
            against.append(says[part])
            present = [name for name in names if label(name) in {row["family"] for row in kept}]
            colour, shape = family_keys(names, present)
            dots = points(kept, x_axis("parameters"), y_axis(title), colour, shape, size=30, opacity=0.75)
            panels.append(panel(level(0.0), dots))
    return Figure(
        "residuals",
        "What the fits leave over",
        f"Losses against {' (left) and '.join(against)}{' (right)' * (len(against) > 1)}. A pattern over size says that the "
        "curve, not the noise, is at fault.",
        tuple(panels),
    )


def residuals(runs: Sequence[Point], fits: Fits) -> Iterator[Row]:
    """Of every run: name, family, x (parameters), and its residuals from the parabola and from L(N, D), nats per token."""
    for p in with_budgets(runs):
        family = fits.families[p.family]
        minimum = next((m for m in family.isoflop.minima if m.budget == p.budget and m.parabola), None)
        parabola = law = None
        if minimum and minimum.parabola:
            (a, b, c), u = minimum.parabola, np.log(p.params)
            parabola = float(p.loss - (a + b * u + c * u * u))
        if family.parametric.law:
            law = float(p.loss - family.parametric.law.at(np.array(p.params), np.array(p.tokens)))
        yield {"name": p.name, "family": p.family, "x": p.params, "parabola": parabola, "law": law, "d": told(p)}


def pairs_figure(fits: Fits) -> Figure:
    """Losses of seeds, joined by seed, of one family trained in two ways; a bar at each mean."""
    return Figure(
        "pairs",
        "One family, trained in two ways",
        "Loss of every seed, joined where the seed is the same, at equal size and budget; bars are means.",
        tuple(_pair_panel(pair, fits) for pair in fits.pairs),
        columns=3,
    )


def _pair_panel(pair: Pair, fits: Fits) -> Any:
    arms = {pair.against: pair.losses_against, pair.arm: pair.losses}
    rows = [
        {"family": label(arm), "y": y, "s": s, "d": f"{label(arm)}, seed {s}: loss {y:.4f}"}
        for arm, losses in arms.items()
        for s, y in zip(pair.seeds, losses)
    ]
    means = [{"family": label(arm), "y": float(np.mean(losses))} for arm, losses in arms.items()]
    order = [label(arm) for arm in arms]
    x = alt.X("family:N", title=None, sort=order, axis=alt.Axis(labelAngle=0), scale=alt.Scale(padding=0.7))
    y, (colour, shape) = y_axis("loss, nats/token"), family_keys(fits.families, arms, legend=False)
    ticks = chart_of(means).mark_tick(thickness=3, width=50, orient="horizontal", opacity=1, aria=False)
    return panel(
        lines(rows, x, y, alt.Detail("s:N"), color=FAINT, strokeWidth=1),
        ticks.encode(x, y, colour),
        points(rows, x, y, colour, shape, size=70),
        title=f"{quantity(pair.params)} parameters, {quantity(pair.budget, 'FLOPs')}",
        width=240,
        height=210,
    )
