"""All fits of a study, in one call, as data and as sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redraft.display import quantity
from redraft.errors import UserError, unknown
from redraft.studies.caveats import study_caveats
from redraft.studies.contract import contract
from redraft.studies.conventions import Recounted, recount
from redraft.studies.engines import Engines, family_number, fit_engines
from redraft.studies.extrapolation import HeldOut, held_out
from redraft.studies.isoflop import TOO_FEW, IsoFlop, curves
from redraft.studies.joint import Joint, fit_joint
from redraft.studies.looseness import Looseness, looseness, tightened
from redraft.studies.multiplier import Best, Estimate, Multiplier, multiplier, student
from redraft.studies.parametric import Parametric
from redraft.studies.records import Point, names, require_comparable, with_budgets
from redraft.studies.repeats import Repeats, fit_repeats
from redraft.studies.robustness import Robustness, robustness

REFERENCE = "ar"
NEEDED = "it takes three sizes around the best one, at two budgets or more"
LABELS = {"ar": "AR", "mdlm": "MDLM", "duo": "Duo", "esolm": "Eso-LM", "smdm": "SMDM"}
LABELS |= {"bd3lm": "BD3-LM", "gidd": "GIDD", "sedd": "SEDD", "d3pm": "D3PM"}


@dataclass(frozen=True)
class FamilyFit:
    """Everything fitted to the runs of one family (or arm)."""

    runs: int
    loss_kind: str | None  # 'exact' or 'bound'
    isoflop: IsoFlop
    parametric: Parametric
    multiplier: Multiplier | None  # None for the reference, and where there is nothing to compare
    parabolas: IsoFlop  # approach 2 as published, no bias subtracted
    envelope: IsoFlop  # approach 1
    held_out: tuple[HeldOut, ...]  # each engine on the largest budget
    looseness: Looseness | None  # of the bound, where a tighter loss stands beside it
    robustness: Robustness | None  # other intervals of L(N, D)
    repeats: Repeats | None  # where data were repeated
    sizes: tuple[float, float]  # the fewest and the most parameters of a run
    trained: tuple[float, float]  # and tokens

    @property
    def laws(self) -> IsoFlop:
        """The minima and power laws that speak for the family: `isoflop`, or the envelope where that has no law."""
        return self.isoflop if self.isoflop.loss or not self.envelope.loss else self.envelope


@dataclass(frozen=True)
class Pair:
    """One family trained in two ways at one size and budget, with the same seeds."""

    arm: str
    against: str
    budget: float  # nominal FLOPs
    params: float
    seeds: tuple[int, ...]
    losses: tuple[float, ...]  # of `arm`, nats per token, by seed
    losses_against: tuple[float, ...]
    difference: Estimate  # mean of arm - against, nats per token; Student's t over seeds


@dataclass(frozen=True)
class Fits:
    """The fits of a study; `to_json` is strict JSON."""

    reference: str
    seed: int
    resamples: int
    convention: str | None
    families: Mapping[str, FamilyFit]
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]  # sentences
    conventions: tuple[Recounted, ...] = ()  # the same runs under every convention they are counted under
    joint: Joint | None = None  # L(N, D) of all families with shared terms

    def to_json(self) -> dict[str, Any]:
        """As `redraft.studies.contract` promises; what is not finite is null."""
        return contract(self)


@np.errstate(all="ignore")  # a resample may leave the numbers; what is not finite is left out or null
def fit(points: Sequence[Point], *, reference: str = REFERENCE, seed: int = 0, resamples: int = 400) -> Fits:
    """Fit every family: IsoFLOP minima and power laws, L(N, D), compute multipliers against `reference`, paired arms.

    The result depends on the set of points, not on their order. A family's draws depend on (seed, its name) alone.
    Raises `UserError` for no points, too few resamples, an unknown reference, or runs that cannot be compared.
    """
    if not points:
        raise UserError("there are no runs to fit.")
    if seed < 0:
        raise UserError(f"the seed is {seed}; it must be 0 or more.")
    if resamples < 40:
        raise UserError(f"{resamples} resamples are too few for a 95 % interval: use 40 or more, 400 is usual.")
    require_comparable(points)
    points = sorted(with_budgets(points), key=lambda p: (p.family, p.budget, p.params, p.loss, p.tokens))
    known = ordered(names(points), reference)
    if reference not in known and reference != REFERENCE:
        raise unknown("reference family", reference, known)
    every = curves(points)
    runs = {family: [p for p in points if p.family == family] for family in known}
    engines = {family: fit_engines(own, every, seed, resamples) for family, own in runs.items()}
    tight = _tight(runs, engines, reference, seed, resamples)
    families = {
        family: FamilyFit(
            len(own),
            own[0].loss_kind,
            engines[family].isoflop,
            engines[family].parametric,
            _multiplier(family, reference, {name: fitted.best for name, fitted in engines.items()}),
            engines[family].parabolas,
            engines[family].envelope,
            held_out(own, every, engines[family], seed),
            tight.get(family),
            _robustness(own, engines[family].parametric, seed, resamples),
            fit_repeats(own),
            (min(p.params for p in own), max(p.params for p in own)),
            (min(p.tokens for p in own), max(p.tokens for p in own)),
        )
        for family, own in runs.items()
    }
    pairs = tuple(_pairs(points))
    convention = next((p.convention for p in points if p.convention), None)
    warnings = tuple(study_caveats(points, families, {pair.arm for pair in pairs}, reference, label))
    counted = recount(points, engines, reference, seed, resamples)
    joint = fit_joint(runs, {name: law for name, fitted in engines.items() if (law := fitted.parametric.law)})
    return Fits(reference, seed, resamples, convention, families, pairs, warnings, counted, joint)


def _robustness(points: Sequence[Point], fitted: Parametric, seed: int, resamples: int) -> Robustness | None:
    return robustness(points, fitted.law, [seed, family_number(points[0].family), 3], resamples) if fitted.law else None


def _tight(
    runs: Mapping[str, list[Point]], engines: Mapping[str, Engines], reference: str, seed: int, resamples: int
) -> dict[str, Looseness]:
    """The looseness of each family whose runs all carry a tighter loss."""
    swapped = {family: found for family, own in runs.items() if (found := tightened(own))}
    every = curves([p for family, own in runs.items() for p in (swapped[family][1] if family in swapped else own)])
    again = {family: fit_engines(own, every, seed, resamples).best for family, (_, own) in swapped.items()}
    told = {}
    for family, (kind, _) in swapped.items():
        base = engines[reference].best if reference in engines and family != reference else None
        bound, firm = engines[family].best, again[family]
        if base and bound and firm:
            told[family] = looseness(kind, bound, firm, base, again.get(reference) or base, reference)
    return {family: value for family, value in told.items() if value}


def _multiplier(family: str, reference: str, best: Mapping[str, Best | None]) -> Multiplier | None:
    own, other = best[family], best.get(reference)
    return multiplier(own, other, reference) if own and other and family != reference else None


def _pairs(points: Sequence[Point]) -> Iterator[Pair]:
    """Arms of one family that share two seeds at a size and budget; the arm with the family's own name comes second."""
    cells: dict[tuple[str, float, float], dict[str, dict[int, float]]] = {}
    for p in points:
        if p.variant_of is not None and p.seed is not None:
            arms = cells.setdefault((p.variant_of, p.budget or p.flops, p.params), {})
            arms.setdefault(p.family, {})[p.seed] = p.loss
    for (family, budget, params), arms in sorted(cells.items()):
        base = family if family in arms else min(arms)
        for arm in sorted(set(arms) - {base}):
            seeds = tuple(sorted(set(arms[arm]) & set(arms[base])))
            if len(seeds) >= 2:
                yield _pair(arm, base, budget, params, seeds, arms)


def _pair(
    arm: str, base: str, budget: float, params: float, seeds: tuple[int, ...], arms: dict[str, dict[int, float]]
) -> Pair:
    losses, against = (tuple(arms[name][seed] for seed in seeds) for name in (arm, base))
    gaps = np.subtract(losses, against)
    difference = student(float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(len(gaps))), len(gaps) - 1)
    return Pair(arm, base, budget, params, seeds, losses, against, difference)


def ordered(families: Sequence[str], reference: str = REFERENCE) -> list[str]:
    """The reference first, then the families of this package, then the others by name."""
    rank = {reference: -1} | {name: i for i, name in enumerate(LABELS) if name != reference}
    return sorted(families, key=lambda name: (rank.get(name, len(rank)), name))


def label(family: str) -> str:
    """How a family is written: 'Eso-LM' for esolm, 'MDLM-nelbo' for its arm mdlm-nelbo, else as it is."""
    stem, dash, rest = family.partition("-")
    return LABELS.get(stem, stem) + dash + rest


def span(estimate: Estimate, digits: int = 3) -> str:
    """A value with its 95 % interval: '0.541 (0.5 to 0.58)'."""
    value, low, high = (
        None if number is None else f"{number:#.{digits}g}".rstrip(".")
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value}" if low is None or high is None else f"{value} ({low} to {high})"


def summary(fits: Fits) -> list[str]:
    """The fits in plain sentences for a terminal: one or two a family, then pairs and warnings."""
    lines = [_opening(fits)]
    lines += [_family_sentence(name, family) for name, family in fits.families.items() if family.laws.loss]
    if untold := [label(n) for n, family in fits.families.items() if family.laws.loss and not family.laws.params]:
        lines.append(f"How the best size of {', '.join(untold)} grows with compute, these runs do not tell: {NEEDED}.")
    lines += filter(None, [multiplier_sentence(fits)])
    lines += [looseness_sentence(name, f.looseness) for name, f in fits.families.items() if f.looseness]
    allocations = [
        f"{label(name)} {span(family.parametric.allocation, 2)}"
        for name, family in fits.families.items()
        if family.parametric.allocation and not family.parametric.flags
    ]
    if allocations:
        lines.append(f"L(N, D) fitted to all runs puts the exponent of N* at {', '.join(allocations)}.")
    lines += filter(None, [extrapolation_sentence(fits), convention_sentence(fits)])
    return lines + [pair_sentence(pair) for pair in fits.pairs] + [f"Warning: {warning}" for warning in fits.warnings]


def looseness_sentence(name: str, loose: Looseness) -> str:
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
    return (
        f"{runs} runs of {len(fits.families)} families{counted}; intervals are 95 %, {fits.resamples} resamples{known}."
    )


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
    text = f"Times the compute of {label(fits.reference)} needed for the same loss: {told}."
    outside = [ratio.extrapolated for k in ratios.values() for ratio in k.ratios]
    if any(outside):
        part, whom = "All" if all(outside) else "Part", label(fits.reference)
        text += f" {part} of this rests on the law of {whom}, beyond the losses that {whom} reached."
    return text


def _over(k: Multiplier) -> str:
    """Which budgets a mean is over: those whose loss the reference reached, or all where it reached none."""
    reached = [ratio.flops for ratio in k.ratios if not ratio.extrapolated]
    budgets = reached or [ratio.flops for ratio in k.ratios]
    ends = dict.fromkeys(quantity(budget, "FLOPs") for budget in (min(budgets), max(budgets)))
    return f" at {' to '.join(ends)}"


def _trend(k: Multiplier) -> str:
    """', rising as C^0.03 (0.01 to 0.05)' where the interval says which way."""
    if k.trend is None or k.trend.low is None or k.trend.high is None or k.trend.low * k.trend.high <= 0:
        return ""
    return f", {'rising' if k.trend.value > 0 else 'falling'} as C^{span(k.trend, 2)}"


def pair_sentence(pair: Pair) -> str:
    """Which of two ways of training a family is better, over which seeds."""
    gap = pair.difference
    resolved = gap.low is not None and gap.high is not None and gap.low * gap.high > 0
    verdict = ("higher" if gap.value > 0 else "lower") if resolved else "not told apart"
    return (
        f"{label(pair.arm)} less {label(pair.against)}, {quantity(pair.params)} parameters, {len(pair.seeds)} seeds: "
        f"{span(gap, 2)} nats/token, {verdict}."
    )
