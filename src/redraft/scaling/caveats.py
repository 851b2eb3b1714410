"""Warnings about fits: sentences for the study and for each family, from the flags of the fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from redraft.display import quantity
from redraft.scaling.approaches import ONE_SIZE
from redraft.scaling.influence_text import influence_caveats
from redraft.scaling.laws.isoflop import (
    ENVELOPE,
    GIVEN,
    NOT_BRACKETED,
    NOT_CONVEX,
    OFF_CENTRE,
    TOO_FEW,
    IsoFlop,
    Minimum,
)
from redraft.scaling.laws.parametric import TOO_FEW_RUNS
from redraft.scaling.records import COMPARABLE, Point
from redraft.scaling.results import FamilyFit

Label = Callable[[str], str]
MEANINGS = {
    TOO_FEW: "fewer than three sizes, so no minimum",
    NOT_CONVEX: "loss does not curve upwards over size, so the lowest run stands in for the minimum",
    NOT_BRACKETED: "the best size is at the edge of the sizes or beyond, so the lowest run stands in for it",
    OFF_CENTRE: "the minimum is off the centre of the sizes, which biases N*",
    GIVEN: "one run at each budget, taken as the best there (approach 1)",
}
BIAS_TOLD = 0.05  # of ln N*, from which the bias of a parabola is worth a line
_NO_FIT = {TOO_FEW_RUNS, ONE_SIZE}  # said by what is absent


def study_caveats(
    points: Sequence[Point], families: Mapping[str, FamilyFit], paired: set[str], reference: str, label: Label
) -> Iterator[str]:
    """Sentences about the study; a family is named where one is meant."""
    if reference not in families:
        yield f"no runs of '{reference}', so no compute multipliers; reference can be {', '.join(families)}."
    yield from _unstated(points)
    yield from _kinds(families, reference, label)
    own = {name: family.isoflop for name, family in families.items() if family.isoflop.loss or name not in paired}
    for flag, meaning in MEANINGS.items():
        where = [text for name, isoflop in own.items() if (text := _flagged(label(name), isoflop, flag))]
        if where:
            yield f"{meaning}: {'; '.join(where)}."
    for name, family in families.items():
        yield from (f"{label(name)}: {text}" for text in _law_caveats(family))
        yield from _uncompared(name, families, reference, label)
    for flag in sorted({flag for family in families.values() for flag in family.parametric.flags} - _NO_FIT):
        whose = [label(name) for name, family in families.items() if flag in family.parametric.flags]
        yield f"L(N, D) of {', '.join(whose)}: {flag}, so its parameters are not to be read one by one."


def family_caveats(family: FamilyFit) -> list[str]:
    """Sentences about one family, which is not named."""
    flagged = [(meaning, _flagged("", family.isoflop, flag).strip()) for flag, meaning in MEANINGS.items()]
    told = [f"{meaning}: {where}." for meaning, where in flagged if where]
    return told + list(_law_caveats(family)) + [f"L(N, D): {flag}." for flag in family.parametric.flags]


def _unstated(points: Sequence[Point]) -> Iterator[str]:
    """Runs that do not say what others say are not refused, but not silent either."""
    for column in (*COMPARABLE, "loss_kind"):
        missing = sum(getattr(p, column) is None for p in points)
        if 0 < missing < len(points):
            yield f"{missing} of {len(points)} runs do not state their {column}; they are taken to be like the others."


def _kinds(families: Mapping[str, FamilyFit], reference: str, label: Label) -> Iterator[str]:
    other = families[reference].loss_kind if reference in families else None
    for kind in sorted({f.loss_kind for f in families.values() if f.loss_kind} - {other}):
        bare = [label(n) for n, f in families.items() if f.loss_kind == kind and f.multiplier and not f.looseness]
        if other and bare:
            yield (
                f"losses of {label(reference)} are {_named(other)} and those of {', '.join(bare)} {_named(kind)}: a "
                f"multiplier holds the looseness of a bound too (give loss_exact or loss_tight to split it off)."
            )


def _named(kind: str) -> str:
    return {"bound": "bounds", "tight": "tighter bounds"}.get(kind, kind)


def _flagged(name: str, isoflop: IsoFlop, flag: str) -> str:
    """'AR at 30 GFLOPs (add larger sizes)'; empty where no budget has the flag."""
    minima = [m for m in isoflop.minima if flag in m.flags]
    if len(minima) > 3:
        return f"{name} at {len(minima)} of {len(isoflop.minima)} budgets"
    hints = {m.budget: f" (add {_side(m)} sizes)" if flag == NOT_BRACKETED else "" for m in minima}
    places = ", ".join(f"{quantity(budget, 'FLOPs')}{hint}" for budget, hint in hints.items())
    return f"{name} at {places}" if places else ""


def _side(m: Minimum) -> str:
    """Where the parabola of a minimum that is not bracketed goes on falling."""
    assert m.parabola
    _, b, c = m.parabola
    return "larger" if -b / (2 * c) > math.log(m.params.value) else "smaller"


def _law_caveats(family: FamilyFit) -> Iterator[str]:
    laws = {"N*": family.isoflop.params, "loss": family.isoflop.loss}
    strays = [what for what, law in laws.items() if law and law.strays]
    if strays:
        yield f"{' and '.join(strays)} off the power law by more than the noise; intervals widened."
    biases = [m.bias[0] for m in family.isoflop.minima if m.bias]
    if biases and (worst := max(biases, key=abs)) and abs(worst) > BIAS_TOLD:
        yield f"by L(N, D) parabolas put N* up to {100 * math.expm1(worst):+.0f} % off on these sizes; subtracted."
    if family.repeats:
        yield f"{family.repeats.repeated} runs repeat data, and L(N, D) takes their tokens for fresh: see `repeats`."
    if family.influence and not family.parametric.flags:
        yield from influence_caveats(family.parametric, family.influence)
    if family.isoflop.loss and family.isoflop.noise.sd is None and family.isoflop.method != ENVELOPE:
        yield "noise is unknown, so there are no bootstrap intervals: add seeds, sizes or loss_se."


def _uncompared(name: str, families: Mapping[str, FamilyFit], reference: str, label: Label) -> Iterator[str]:
    compared = name != reference and families[name].isoflop.loss and reference in families
    if compared and families[name].multiplier is None:
        yield f"{label(reference)} has no loss law that falls with compute, so {label(name)} has no multiplier."
