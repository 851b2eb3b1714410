"""Held-out extrapolation: the largest budget's best loss, predicted by each approach from the smaller budgets.

Signed errors are logarithms of predicted over measured: +0.01 is a loss predicted 1 % too high.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from redraft.scaling.approaches import Approaches, fit_approaches
from redraft.scaling.laws.isoflop import CORRECTED, Curve, Minimum
from redraft.scaling.laws.parabola_bias import optimum
from redraft.scaling.laws.parametric import Law
from redraft.scaling.records import Point

FEWEST_BUDGETS = 3  # two of them give a law
_FAR = 100.0  # of a logarithm
_RESAMPLES = 40  # nothing is read from the intervals


@dataclass(frozen=True)
class HeldOut:
    """One approach's prediction of the best loss and N* at the largest budget, from the smaller budgets."""

    engine: str  # 'envelope', 'parabolas', 'corrected', 'parametric' or 'projection'
    flops: float  # of the budget that was held out
    loss: float  # predicted best loss, nats per token
    loss_error: float  # ln(predicted / measured)
    params: float  # predicted N*
    params_error: float | None  # None where the runs do not bracket the minimum that was held out


def held_out(points: Sequence[Point], every: Sequence[Curve], fitted: Approaches, seed: int) -> tuple[HeldOut, ...]:
    """Every engine's error on the largest budget of one family; empty below three budgets or without a law."""
    family = points[0].family
    own = [curve for curve in every if curve.family == family]
    if len(own) < FEWEST_BUDGETS:
        return ()
    last = max(own, key=lambda curve: curve.budget)
    kept = [p for p in points if p.budget != last.budget]
    # Other families lend their noise, so that whether L(N, D) holds is decided as it is with all runs.
    again = fit_approaches(kept, [curve for curve in every if curve is not last], seed, _RESAMPLES)
    target = next(m for m in fitted.isoflop.minima if m.budget == last.budget)
    # A law without an optimum near the runs (it rises, or one of its terms is lost) predicts nothing.
    sane = [found for found in _predictions(again, last) if abs(found[1]) < _FAR and abs(found[2]) < _FAR]
    return tuple(_error(name, n, loss, target) for name, n, loss in sane)


def _predictions(fits: Approaches, curve: Curve) -> Iterator[tuple[str, float, float]]:
    """Engine, ln N* and ln loss* at the budget of a curve."""
    isoflops = {"envelope": fits.envelope, "parabolas": fits.parabolas, "corrected": fits.isoflop}
    for name, isoflop in isoflops.items():
        if isoflop.params and isoflop.loss and (name != "corrected" or isoflop.method == CORRECTED):
            yield name, math.log(isoflop.params.at(curve.flops)), math.log(isoflop.loss.at(curve.flops))
    for name, law in {"parametric": fits.parametric.law, "projection": fits.parametric.projected}.items():
        if law is not None:
            yield name, *_by_law(law, curve)


def _by_law(law: Law, curve: Curve) -> tuple[float, float]:
    log_n, _, log_loss = optimum(curve.log_params, curve.log_tokens, law.array[None])[:, 0].tolist()
    return log_n, log_loss


def _error(name: str, log_n: float, log_loss: float, measured: Minimum) -> HeldOut:
    missed = log_n - math.log(measured.params.value) if measured.is_vertex or measured.given else None
    error = log_loss - math.log(measured.loss.value)
    return HeldOut(name, measured.flops, math.exp(log_loss), error, math.exp(log_n), missed)
