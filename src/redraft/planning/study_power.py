"""What a study can tell apart: for each two arms the smallest difference in nats, and in compute, at 80 % power. No torch.

The noise of a run and the correlation of paired seeds are those of an earlier study, or stated. A difference is turned
into compute by the slope of loss over ln C of the earlier study's laws, at its largest budget, or by a stated exponent.
With one seed an arm there is no spread to test with: two runs are then compared by the noise of the earlier study, Student's t
with its degrees of freedom.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from redraft.display import quantity
from redraft.planning.study import PlannedRun, Study
from redraft.scaling.fit import fit
from redraft.scaling.laws.isoflop import ENOUGH, Curve, Noise, curves, estimate_noise
from redraft.scaling.laws.multiplier import LEVEL, Estimate
from redraft.scaling.power import Design, compute_factor, detectable, detectable_by, seeds_needed
from redraft.scaling.records import JUDGE, Point, with_budgets
from redraft.scaling.results import label

# Stated priors, where no earlier study is named.
DEMO = "redraft's demo, seeds and scatter about the laws of four families of sizes 6k to 38k, 2.4 to 220 GFLOPs, bytes of code"
NOISE = Noise(0.041, 10, f"a prior: {DEMO}")
# loss ~ C^-g: .063 to .067 for the four families of arXiv:2602.15014, whose losses are 2.4 to 3.0
EXPONENT, LOSS = 0.065, 2.5
SLOPE = "a prior: loss ~ C^-0.065 (the optima of arXiv:2602.15014) at 2.5 nats"


@dataclass(frozen=True)
class Prior:
    """What is known of the runs to come. `slope`: -d loss / d ln C, nats."""

    noise: Noise
    correlation: float  # of the losses of two arms over the same seeds; 0 where it is not known
    correlation_from: str
    slope: float
    slope_from: str


@dataclass(frozen=True)
class Contrast:
    """Two arms at the cells (size and budget) where both have the same number of seeds. Differences: nats per token."""

    arm: str
    against: str
    cells: int
    seeds: int
    paired: bool
    detectable: Estimate  # with ends where the noise is an estimate
    compute_factor: float  # that is worth it
    seeds_needed: int | None  # for the difference that was asked for; None where none was, or a million do not do


STATED = Prior(NOISE, 0.0, "not known, so taken as 0", EXPONENT * LOSS, SLOPE)


def stated(noise: float | None, before: Prior = STATED, correlation: float | None = None) -> Prior:
    """The prior, with a noise (nats) and a correlation of paired seeds that the user states."""
    if noise is not None:
        before = replace(before, noise=Noise(noise, 0, "stated by --noise"))
    if correlation is None:
        return before
    return replace(before, correlation=correlation, correlation_from="stated by --correlation")


def prior_of(points: Sequence[Point], name: str) -> Prior:
    """What an earlier study knows; what it does not tell stays as stated."""
    points = with_budgets(points)
    noise, (rho, told) = _noise(curves(points)), _correlation(points)
    slope = _slope(points)
    return Prior(
        replace(noise, source=f"{noise.source} of {name}") if noise.sd else NOISE,
        rho, told, *((slope, f"the laws of {name} at its largest budget") if slope else (STATED.slope, SLOPE)),
    )  # fmt: skip


def _noise(every: Sequence[Curve]) -> Noise:
    """Between seeds alone where these have enough degrees of freedom: residuals hold the error of a curve too."""
    spread, dof = sum(c.spread for c in every), sum(c.spread_dof for c in every)
    return (
        Noise(math.sqrt(spread / dof), dof, "spread between seeds") if dof >= ENOUGH else estimate_noise(every, every)
    )


def _correlation(points: Sequence[Point]) -> tuple[float, str]:
    """Of two arms' losses over shared seeds, about the means of their cells, pooled; 0 below 6 degrees of freedom."""
    cells: dict[tuple[float | None, float], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for p in points:
        if p.seed is not None:
            cells[p.budget, p.params][p.family][p.seed] = p.loss
    sums, dof = np.zeros(3), 0
    for arms in cells.values():
        for one, other in combinations(sorted(arms), 2):
            seeds = sorted(arms[one].keys() & arms[other].keys())
            if len(seeds) > 1:
                a, b = (np.array([arms[name][seed] for seed in seeds]) for name in (one, other))
                a, b = a - a.mean(), b - b.mean()
                sums += a @ b, a @ a, b @ b
                dof += len(seeds) - 1
    if dof < ENOUGH or not sums[1:].all():
        return 0.0, f"{dof} degrees of freedom do not tell it, so taken as 0"
    rho = float(sums[0] / math.sqrt(sums[1] * sums[2]))
    return min(max(rho, 0.0), 0.99), f"{dof} degrees of freedom of pairs" + ", negative, so taken as 0" * (rho < 0)


def _slope(points: Sequence[Point]) -> float | None:
    """-d loss / d ln C of the fitted laws at the largest budget, the median over families."""
    fits = fit(points, resamples=40)
    top = max(p.budget or p.flops for p in points)
    laws = [law for f in fits.families.values() if (law := f.laws.loss) and law.exponent.value < 0]
    slopes = [-law.exponent.value * float(law.at(top)) for law in laws]
    return float(np.median(slopes)) if slopes else None


def contrasts(study: Study, prior: Prior, resolve: float | None = None) -> list[Contrast]:
    """Every two arms that share a size and a budget; `resolve`: a difference in nats that is to be seen."""
    cells: dict[tuple[str | None, float], dict[str, list[PlannedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in study.runs:
        if run.arm != JUDGE:
            cells[run.config.network.size, run.config.budget.flops or 0.0][run.arm].append(run)
    groups: dict[tuple[str, str, int], list[tuple[list[PlannedRun], list[PlannedRun]]]] = defaultdict(list)
    for arms in cells.values():
        for one, other in combinations(sorted(arms), 2):
            groups[one, other, min(len(_seeds(arms[one])), len(_seeds(arms[other])))].append((arms[one], arms[other]))
    return [_contrast(*key, cells=group, prior=prior, resolve=resolve) for key, group in sorted(groups.items())]


def _seeds(runs: Sequence[PlannedRun]) -> set[int]:
    return {run.config.seed for run in runs}


def _contrast(
    one: str,
    other: str,
    seeds: int,
    *,
    cells: Sequence[tuple[list[PlannedRun], list[PlannedRun]]],
    prior: Prior,
    resolve: float | None,
) -> Contrast:
    """Arms of one family are paired by seed, as `study fit` does; others where that sees more."""
    sd, rho = prior.noise.sd or 0.0, prior.correlation
    same = all(a[0].config.family.name == b[0].config.family.name for a, b in cells)
    shared = all(len(_seeds(a) & _seeds(b)) == seeds for a, b in cells)
    designs = [Design(seeds, rho)] * shared + [Design(seeds)] * (not (same and shared))
    found, design = min(((_seen(design, prior), design) for design in designs), key=lambda pair: pair[0])
    needs = [n for d in designs if resolve and (n := seeds_needed(resolve, sd, d.correlation))]
    told, factor = Estimate(found, *(found * end for end in _ends(prior.noise.dof))), compute_factor(found, prior.slope)
    paired = design.correlation is not None
    return Contrast(one, other, len(cells), seeds, paired, told, factor, min(needs, default=None))


def _seen(design: Design, prior: Prior) -> float:
    """The smallest difference, nats: by the spread of the arms' own seeds, or of one seed by the noise of earlier runs."""
    sd = prior.noise.sd or 0.0
    if design.seeds > 1:
        return detectable_by(design, sd)
    return detectable(design.error(sd), prior.noise.dof or math.inf)


def _ends(dof: int) -> tuple[float, float] | tuple[()]:
    """The 95 % interval of a standard deviation estimated with `dof`, over its estimate; nothing where it is stated."""
    from scipy.special import chdtri

    if not dof:
        return ()
    tail = (1 - LEVEL) / 2
    return math.sqrt(dof / chdtri(dof, tail)), math.sqrt(dof / chdtri(dof, 1 - tail))


def power_json(prior: Prior, found: Sequence[Contrast], resolve: float | None) -> Mapping[str, Any]:
    """For `redraft plan --json`."""
    return {"power": 0.8, "prior": asdict(prior), "resolve": resolve, "comparisons": [asdict(one) for one in found]}


def power_sentences(prior: Prior, found: Sequence[Contrast], resolve: float | None) -> list[str]:
    """What can be told apart, two arms a line, and what it rests on."""
    if not found:
        return ["Power: no two arms share a size and a budget, so nothing is compared."] if resolve else []
    noise = prior.noise
    dof = f", {noise.dof} degrees of freedom" if noise.dof else ""
    basis = (
        f"Power, at 80 %: noise of a run {noise.sd:.2g} nats ({noise.source}{dof}); correlation of paired seeds "
        f"{prior.correlation:.2g} ({prior.correlation_from}); e times the compute is worth {prior.slope:.2g} nats "
        f"({prior.slope_from})."
    )
    groups: dict[str, list[str]] = defaultdict(list)
    for one in found:
        groups[_sees(one, resolve)].append(f"{label(one.arm)} and {label(one.against)}")
    return [basis, *(f"{'; '.join(dict.fromkeys(pairs))}: {text}" for text, pairs in groups.items())]


def _sees(one: Contrast, resolve: float | None) -> str:
    how = "by that noise" if one.seeds == 1 else "paired by seed" if one.paired else "unpaired"
    seen = one.detectable
    ends = "" if seen.low is None else f" ({seen.low:.2g} to {seen.high:.2g}, as far as the noise is known)"
    text = (
        f"{one.seeds} seed{'s' * (one.seeds > 1)} at a size and a budget, {how}, sees {seen.value:.2g} nats{ends}, "
        f"which is {quantity(one.compute_factor)} times the compute"
    )
    if resolve is None:
        return text + "."
    needed = "more than a million" if one.seeds_needed is None else str(one.seeds_needed)
    return f"{text}; {resolve:g} nats need {needed} seeds."
