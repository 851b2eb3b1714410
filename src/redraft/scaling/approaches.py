"""Approaches 1, 2 and 3 (envelope, IsoFLOP parabolas, L(N, D)) on the runs of one family, and which of them is reported.

Approach 2 is reported where at least two budgets have three sizes; the bias that L(N, D) implies is subtracted, if L(N, D)
fits. Otherwise approach 1, the envelope, is reported. Approach 3 is given beside them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from redraft.scaling.laws.isoflop import Curve, IsoFlop, Laws, Noise, estimate_noise, fit_envelope, fit_isoflop
from redraft.scaling.laws.least_squares import EXPONENTS, PARAMETERS
from redraft.scaling.laws.multiplier import Array, Best, Reach, law_of_best
from redraft.scaling.laws.parametric import PRECISION, Law, Parametric, fit_parametric
from redraft.scaling.records import Point

ONE_SIZE = "one size at each budget"  # N and D move together: L(N, D) cannot be told from its sum
UNLIKELY = 0.01  # a worse misfit of L(N, D) than the noise gives this rarely, and it is not trusted with the bias


@dataclass(frozen=True)
class Approaches:
    """All fits of one family."""

    isoflop: IsoFlop  # the reported fit of the family: approach 2, or 1
    best: Best | None  # its loss* over budgets
    parabolas: IsoFlop  # approach 2 as published
    envelope: IsoFlop  # approach 1
    parametric: Parametric  # approach 3


def fit_approaches(points: Sequence[Point], every: Sequence[Curve], seed: int, resamples: int) -> Approaches:
    """Fit the runs of one family of a study whose curves are `every`; draws depend on (seed, the family's name)."""
    family = points[0].family
    own = [curve for curve in every if curve.family == family]
    noise, number = estimate_noise(own, every), family_number(family)
    single = len(own) > 1 and all(len(curve.loss) == 1 for curve in own)
    lone = single and not _control(points, every)
    parametric = fit_parametric(points, [seed, number, 1], resamples)
    if lone and parametric.law:
        parametric = Parametric(len(points), flags=(ONE_SIZE,))
    parabolas, best = fit_isoflop(own, noise, [seed, number, 0], resamples)
    envelope, lowest = fit_envelope(own, [seed, number, 2], resamples)
    if single and not lone:
        envelope, lowest = replace(envelope, params=None, tokens=None, loss=None), None
    isoflop = parabolas
    if lone:
        isoflop, best = envelope, lowest
    elif (laws := bias_laws(parametric, noise, points)) is not None:
        isoflop, best = fit_isoflop(own, _better(noise, parametric, points), [seed, number, 0], resamples, laws)
        best = best and _bent(best, laws, points)
    return Approaches(isoflop, best or lowest, parabolas, envelope, parametric)


def _control(points: Sequence[Point], every: Sequence[Curve]) -> bool:
    """Whether these runs are an ablation arm of another family in the study, to be compared with it run by run."""
    arm, family = points[0].family, points[0].variant_of
    return family is not None and family != arm and any(curve.family == family for curve in every)


def _bent(best: Best, laws: Laws, points: Sequence[Point]) -> Best:
    """`best`, with the best-loss law that a trusted L(N, D) implies, and its resamples, for extrapolation."""
    cost = float(np.mean([np.log(p.flops / (p.params * p.tokens)) for p in points]))
    middle = float(np.mean([np.log(p.flops) for p in points]))
    value = law_of_best(laws.value, cost, middle)
    single = Reach(*(np.asarray(part[0]) for part in (value.floor, value.intercept, value.slope)))
    return replace(best, bend=single, bend_draws=law_of_best(laws.draws, cost, middle))


def family_number(family: str) -> int:
    """A seed from a name."""
    return zlib.crc32(family.encode())


def bias_laws(parametric: Parametric, noise: Noise, points: Sequence[Point]) -> Laws | None:
    """L(N, D) and its resamples, if its residuals pass an F test against the noise of a run; else None."""
    from scipy.special import fdtrc

    law = parametric.law
    if law is None or parametric.flags or parametric.draws is None or parametric.rms is None or noise.sd is None:
        return None
    if not _inside(law):
        return None
    level = _level(points)
    ratio = (parametric.rms * level) ** 2 / max(noise.sd, PRECISION * level) ** 2
    if fdtrc(parametric.runs - PARAMETERS, noise.dof or 1e6, ratio) < UNLIKELY:
        return None
    return Laws(law.array[None], parametric.draws)


def _inside(law: Law) -> bool:
    """Whether both exponents were found, and not merely the edge of the search; and both terms are there."""
    found = all(1.02 * EXPONENTS[0] < exponent < 0.98 * EXPONENTS[1] for exponent in (law.alpha, law.beta))
    return found and law.A > 0 and law.B > 0


def _better(noise: Noise, parametric: Parametric, points: Sequence[Point]) -> Noise:
    """The residuals of an L(N, D) that fits, where these have more degrees of freedom than those of the parabolas.

    The spread between enough seeds needs no curve, and stays.
    """
    dof = parametric.runs - PARAMETERS
    if parametric.rms is None or dof <= noise.dof or (noise.dof and not noise.modelled):
        return noise
    return Noise(parametric.rms * _level(points), dof, "residuals of L(N, D)", modelled=True)


def _level(points: Sequence[Point]) -> float:
    levels: Array = np.log([p.loss for p in points])
    return float(np.exp(levels.mean()))
