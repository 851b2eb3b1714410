"""All fits of a study, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from redraft.errors import UserError, unknown
from redraft.scaling.approaches import Approaches, family_number, fit_approaches
from redraft.scaling.caveats import study_caveats
from redraft.scaling.conventions import recount
from redraft.scaling.extrapolation import held_out
from redraft.scaling.laws.data_constrained import fit_data_constrained
from redraft.scaling.laws.elbo_gap import ElboGap, looseness, tightened
from redraft.scaling.laws.influence import influence
from redraft.scaling.laws.isoflop import curves
from redraft.scaling.laws.joint import fit_joint
from redraft.scaling.laws.multiplier import Best, Multiplier, multiplier
from redraft.scaling.laws.parametric import Parametric
from redraft.scaling.laws.robustness import Robustness, robustness
from redraft.scaling.pairs import pairs
from redraft.scaling.records import Point, names, require_comparable, with_budgets
from redraft.scaling.results import REFERENCE, FamilyFit, Fits, label, ordered

RESAMPLES = 400


@np.errstate(all="ignore")  # a resample may leave the numbers; what is not finite is left out or null
def fit(
    points: Sequence[Point],
    *,
    reference: str = REFERENCE,
    seed: int = 0,
    resamples: int = RESAMPLES,
    checks: bool = True,
) -> Fits:
    """Fit every family: IsoFLOP minima and power laws, L(N, D), compute multipliers against `reference`, paired arms.

    `checks`: also what tells how far to trust it: other intervals and conventions, influence, the joint law.


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
    engines = {family: fit_approaches(own, every, seed, resamples) for family, own in runs.items()}
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
            _robustness(own, engines[family].parametric, seed, resamples) if checks else None,
            fit_data_constrained(own),
            (min(p.params for p in own), max(p.params for p in own)),
            (min(p.tokens for p in own), max(p.tokens for p in own)),
            influence(own, engines[family].parametric) if checks else None,
        )
        for family, own in runs.items()
    }
    paired = tuple(pairs(points))
    convention = next((p.convention for p in points if p.convention), None)
    warnings = tuple(study_caveats(points, families, {pair.arm for pair in paired}, reference, label))
    plain = Fits(reference, seed, resamples, convention, families, paired, warnings)
    if not checks:
        return plain
    laws = {name: law for name, fitted in engines.items() if (law := fitted.parametric.law)}
    counted = recount(points, engines, reference, seed, resamples)
    return replace(plain, conventions=counted, joint=fit_joint(runs, laws))


def _robustness(points: Sequence[Point], fitted: Parametric, seed: int, resamples: int) -> Robustness | None:
    return robustness(points, fitted.law, [seed, family_number(points[0].family), 3], resamples) if fitted.law else None


def _tight(
    runs: Mapping[str, list[Point]], engines: Mapping[str, Approaches], reference: str, seed: int, resamples: int
) -> dict[str, ElboGap]:
    """The looseness of each family whose runs all carry a tighter loss."""
    swapped = {family: found for family, own in runs.items() if (found := tightened(own))}
    every = curves([p for family, own in runs.items() for p in (swapped[family][1] if family in swapped else own)])
    again = {family: fit_approaches(own, every, seed, resamples).best for family, (_, own) in swapped.items()}
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
