"""The answer of a study: a table of loss, compute factor and sampling by family, and one figure of loss against compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.display import quantity
from redraft.frontier.matched_entropy import Match, Matching
from redraft.report.theme import (
    Figure,
    aside,
    band,
    bars,
    ends,
    family_keys,
    flops_axis,
    lines,
    panel,
    points,
    quantity_axis,
)
from redraft.scaling.laws.isoflop import Minimum
from redraft.scaling.laws.multiplier import Estimate, PowerLaw
from redraft.scaling.results import Fits, label, ordered, span


@dataclass(frozen=True)
class Answer:
    """A family at the largest budget that all families have. `factor`: times the compute of the reference for the same loss;
    `fastest` and `best`: its settings of highest speed and of lowest nats under the judge, at the common entropy."""

    family: str
    loss: Estimate  # nats per token, at the best size
    kind: str | None  # 'exact' or 'bound'
    params: float
    at_the_end: bool  # whether the sizes do not bracket the best one
    factor: Estimate | None
    extrapolated: bool  # whether the reference never had that loss
    fastest: Match | None
    best: Match | None


def answers(fits: Fits, matching: Matching | None) -> tuple[float, list[Answer]]:
    """The budget (FLOPs) and a row a family, lowest loss first. Arms that are compared in pairs have a figure of their own."""
    names = _names(fits)
    shared = set.intersection(*({m.budget for m in fits.families[name].laws.minima} for name in names))
    budget = max(shared or (m.budget for name in names for m in fits.families[name].laws.minima))
    rows = [_answer(fits, matching, name, m) for name in names if (m := _at(fits, name, budget))]
    return budget, sorted(rows, key=lambda row: row.loss.value)


def _names(fits: Fits) -> list[str]:
    arms = {pair.arm for pair in fits.pairs}
    return ordered([name for name in fits.families if name not in arms], fits.reference)


def _at(fits: Fits, name: str, budget: float) -> Minimum | None:
    return next((m for m in fits.families[name].laws.minima if m.budget == budget), None)


def _answer(fits: Fits, matching: Matching | None, name: str, minimum: Minimum) -> Answer:
    family = fits.families[name]
    ratios = family.multiplier.ratios if family.multiplier else ()
    ratio = next((r for r in ratios if np.isclose(r.flops, minimum.flops, rtol=0.05)), None)
    own = [m for m in matching.matches if m.family == name] if matching else []
    return Answer(
        family=name,
        loss=minimum.loss,
        kind=family.loss_kind,
        params=minimum.params.value,
        at_the_end=not minimum.is_vertex and not minimum.given,
        factor=ratio.multiplier if ratio else None,
        extrapolated=bool(ratio and ratio.extrapolated),
        fastest=max(own, key=lambda m: m.tokens_per_second, default=None),
        best=min(own, key=lambda m: m.quality.value, default=None),
    )


def setting(match: Match | None) -> str:
    """'4 steps: 107k tokens/s, 3.99 (3.9 to 4.07) nats'."""
    if match is None:
        return "–"
    return f"{match.steps} steps: {quantity(match.tokens_per_second)} tokens/s, {span(match.quality)} nats"


def answer_figure(fits: Fits) -> Figure:
    """The lowest loss of each family at each budget, with 95 % intervals and, where there is one, its power law; log-log."""
    names = _names(fits)
    minima = {name: fits.families[name].laws.minima for name in names}
    rows = [
        {"family": label(name), "x": m.flops * aside(name, names), **ends(m.loss), "d": _words(name, m)}
        for name in names
        for m in minima[name]
    ]
    budgets = [m.budget for own in minima.values() for m in own]
    x, y, keys = flops_axis(budgets), quantity_axis("loss, nats/token"), family_keys(fits.families, names)
    shown = [bars(rows, x, keys[0]), points(rows, x, y, *keys, size=70)]
    if laws := _laws(fits, names):
        shown = [band(rows, x, keys[0]), lines(laws, x, y, keys[0]), *shown]
    bounds = [label(name) for name in names if fits.families[name].loss_kind == "bound"]
    caption = (
        "Held-out loss at the best size of each budget; bars are 95 % intervals, set side by side, lines power laws."
    )
    if bounds:
        caption += f" Those of {', '.join(bounds)} are upper bounds."
    return Figure("answer", "Loss against compute", caption, (panel(*shown, width=560, height=320),))


def _words(name: str, m: Minimum) -> str:
    return f"{label(name)}: {span(m.loss)} nats/token at {quantity(m.budget, 'FLOPs')}, {quantity(m.params.value)} parameters"


def _laws(fits: Fits, names: Sequence[str]) -> list[dict[str, object]]:
    out: list[dict[str, object]] = []
    for name in names:
        law, own = fits.families[name].laws.loss, [m.budget for m in fits.families[name].laws.minima]
        if isinstance(law, PowerLaw):
            out += [
                {"family": label(name), "x": float(c), "y": float(law.at(c))}
                for c in np.geomspace(min(own), max(own), 20)
            ]
    return out
