"""The fits of a study in plain sentences, for a terminal and for reports."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from redraft.display import quantity
from redraft.scaling.influence_text import influence_words
from redraft.scaling.laws.elbo_gap import ElboGap
from redraft.scaling.laws.isoflop import TOO_FEW
from redraft.scaling.laws.multiplier import Multiplier
from redraft.scaling.laws.size_ratios import size_ratios
from redraft.scaling.power import detectable
from redraft.scaling.results import FamilyFit, Fits, Pair, label, span

NEEDED = "it takes three sizes around the best one, at two budgets or more"


def summary(fits: Fits) -> list[str]:
    """The fits in plain sentences for a terminal: one or two a family, then pairs and warnings."""
    lines = [_opening(fits)]
    lines += [_family_sentence(name, family) for name, family in fits.families.items() if family.laws.loss]
    if untold := [label(n) for n, family in fits.families.items() if family.laws.loss and not family.laws.params]:
        lines.append(f"How the best size of {', '.join(untold)} grows with compute, these runs do not tell: {NEEDED}.")
    lines += filter(None, [" ".join(filter(None, [multiplier_sentence(fits), size_sentence(fits)]))])
    lines += [elbo_gap_sentence(name, f.looseness) for name, f in fits.families.items() if f.looseness]
    allocations = [
        f"{label(name)} {span(family.parametric.allocation, 2)}"
        for name, family in fits.families.items()
        if family.parametric.allocation and not family.parametric.flags
    ]
    if allocations:
        lines.append(f"L(N, D) fitted to all runs puts the exponent of N* at {', '.join(allocations)}.")
    lines += filter(None, [extrapolation_sentence(fits), decided_sentence(fits), convention_sentence(fits)])
    return lines + [pair_sentence(pair) for pair in fits.pairs] + [f"Warning: {warning}" for warning in fits.warnings]


def elbo_gap_sentence(name: str, loose: ElboGap) -> str:
    """The multiplier with a tighter loss, and the bound's share."""
    what = "exact likelihood" if loose.tighter == "exact" else "tighter bound"
    return (
        f"{label(name)} by its {what}: {span(loose.multiplier.mean)} times the compute of "
        f"{label(loose.multiplier.reference)}; the looseness of the bound is a factor of {span(loose.mean)}."
    )


def extrapolation_sentence(fits: Fits) -> str:
    """How far each engine missed the best loss of the largest budget when it was held out; or nothing."""
    told = [
        f"{label(name)} {', '.join(f'{100 * h.loss_error:+.2f} % ({h.engine})' for h in family.held_out)}"
        for name, family in fits.families.items()
        if family.held_out
    ]
    return f"Best loss of the largest budget, predicted from the others: {'; '.join(told)}." if told else ""


def decided(fits: Fits) -> dict[str, FamilyFit]:
    """The families of whose L(N, D) it is known what decides it, and whose parameters are to be read one by one."""
    return {n: family for n, family in fits.families.items() if family.influence and not family.parametric.flags}


def decided_sentence(fits: Fits) -> str:
    """Without which run, budget and group of runs a parameter of L(N, D) would be another; or nothing."""
    told = [
        f"of {label(name)}, {influence_words(family.parametric, family.influence)}"
        for name, family in decided(fits).items()
        if family.influence
    ]
    return f"Who decides L(N, D), by what it would be without them: {'; '.join(told)}." if told else ""


def convention_sentence(fits: Fits) -> str:
    """The exponent of N* under every counting convention; or nothing."""
    told: dict[str, list[str]] = {}
    for row in fits.conventions:
        if row.size_exponent:
            told.setdefault(row.convention, []).append(f"{label(row.family)} {span(row.size_exponent, 2)}")
    return (
        f"N* by convention: {'; '.join(f'{name}: ' + ', '.join(rows) for name, rows in told.items())}." if told else ""
    )


def _opening(fits: Fits) -> str:
    runs = sum(family.runs for family in fits.families.values())
    counted = f" counted as {fits.convention}" if fits.convention else ""
    noise = {f.laws.noise.source for f in fits.families.values() if f.laws.loss}
    known = f"; noise from {'; '.join(sorted(noise))}" if noise else ""
    families = f"{len(fits.families)} families" if len(fits.families) > 1 else "1 family"
    return f"{runs} runs of {families}{counted}; intervals are 95 %, {fits.resamples} resamples{known}."


def _family_sentence(name: str, family: FamilyFit) -> str:
    laws = family.laws
    top = ([m for m in laws.minima if TOO_FEW not in m.flags] or laws.minima)[-1]
    assert laws.loss
    size = f"N* ~ C^{span(laws.params.exponent)}, " if laws.params else ""
    return (
        f"{label(name)}: {size}loss ~ C^{span(laws.loss.exponent)}; "
        f"at {quantity(top.budget, 'FLOPs')} loss {span(top.loss, 4)} nats/token with {quantity(top.params.value)} "
        f"parameters on {quantity(top.tokens.value)} tokens."
    )


def multiplier_sentence(fits: Fits) -> str:
    """What each family pays in compute for the reference's loss, and whether that changes with compute; or nothing."""
    ratios = {name: family.multiplier for name, family in fits.families.items() if family.multiplier}
    if not ratios:
        return ""
    told = "; ".join(f"{label(name)} {span(k.mean)}{_over(k)}{_trend(k)}" for name, k in ratios.items())
    averaged = any(len(_averaged(k)) > 1 for k in ratios.values())
    how = ", on average over budgets (geometric mean)" if averaged else ""
    text = f"Times the compute of {label(fits.reference)} needed for the same loss{how}: {told}."
    outside = [ratio.extrapolated for k in ratios.values() for ratio in k.ratios]
    if any(outside):
        part, whom = "All" if all(outside) else "Part", label(fits.reference)
        text += f" {part} of this rests on the law of {whom}, beyond the losses that {whom} reached."
    return text


def size_sentence(fits: Fits) -> str:
    """Best sizes over the reference's at the same compute; or nothing."""
    told = [
        f"{label(one.family)} {span(one.ratio)} at {_ends(one.budgets)}"
        + ("" if one.detectable is None else f", not told apart: {one.detectable:.2g} times could have been seen")
        for one in size_ratios({name: own.laws.minima for name, own in fits.families.items()}, fits.reference)
    ]
    whom = label(fits.reference)
    return f"Best size over that of {whom} where both lie between sizes: {'; '.join(told)}." if told else ""


def _averaged(k: Multiplier) -> list[float]:
    """Budgets (FLOPs) that a mean is over: those whose loss the reference reached, or all where it reached none."""
    reached = [ratio.flops for ratio in k.ratios if not ratio.extrapolated]
    return reached or [ratio.flops for ratio in k.ratios]


def _over(k: Multiplier) -> str:
    """Which budgets a mean is over, in words."""
    return f" at {_ends(_averaged(k))}"


def _ends(budgets: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(quantity(budget, "FLOPs") for budget in (min(budgets), max(budgets))))


def _trend(k: Multiplier) -> str:
    """', rising as C^0.03 (0.01 to 0.05)' where the interval says which way."""
    if k.trend is None or k.trend.low is None or k.trend.high is None or k.trend.low * k.trend.high <= 0:
        return ""
    return f", {'rising' if k.trend.value > 0 else 'falling'} as C^{span(k.trend, 2)}"


def _resolution(pair: Pair) -> str:
    """The smallest difference that these seeds could have told, from their own spread."""
    gaps = np.subtract(pair.losses, pair.losses_against)
    seen = detectable(float(gaps.std(ddof=1)) / math.sqrt(len(gaps)), len(gaps) - 1)
    return f": {seen:.2g} nats could have been seen (80 % power)"


def _worth(pair: Pair) -> str:
    """The difference in compute, or nothing."""
    if pair.factor is None:
        return ""
    beyond = ", beyond the budgets of that" if pair.factor.extrapolated else ""
    factor, at = span(pair.factor.value), quantity(pair.budget, "FLOPs")
    return f"; {factor} times the compute of {label(pair.against)} at {at}{beyond}"


def pair_sentence(pair: Pair) -> str:
    """Which of two ways of training a family is better, over which seeds."""
    gap = pair.difference
    resolved = gap.low is not None and gap.high is not None and gap.low * gap.high > 0
    verdict = ("higher" if gap.value > 0 else "lower") if resolved else f"not told apart{_resolution(pair)}"
    return (
        f"{label(pair.arm)} less {label(pair.against)}, {quantity(pair.params)} parameters, {len(pair.seeds)} seeds: "
        f"{span(gap, 2)} nats/token, {verdict}{_worth(pair)}."
    )
