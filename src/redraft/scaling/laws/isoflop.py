"""IsoFLOP fits: the best size for a budget, and how it grows.  Hoffmann et al. 2022, arXiv:2203.15556, approach 2.

At each budget C the loss is a parabola in the logarithm of size, loss = a + b ln N + c (ln N)^2, whose vertex gives N*,
D* and loss*. Over budgets these follow power laws N* = k C^a, D* = k C^b, loss* = k C^-g.

A parabola is the wrong curve: on a wide or off-centre grid its vertex is biased even without noise (Czech et al. 2026,
arXiv:2603.22339), hence the flags. Where L(N, D) fits the runs as well as the noise lets it, the bias that it implies is
subtracted (`laws/parabola_bias.py`; `approaches.py` decides that). Losses are then redrawn around L(N, D),
whose curvature all runs share, and a resample of L(N, D) goes with each resample of the vertex.

Intervals, 95 %. A study has a handful of sizes, often with one seed, so runs cannot be resampled: three sizes leave a
parabola no residual at all. Instead every loss is redrawn around the fitted parabolas with the noise of a run (`Noise`)
and all is fitted again: a parametric bootstrap. The noise is itself estimated, from nu degrees of freedom, so each
resample first draws its variance, s^2 nu / chi^2_nu; for a statistic linear in the losses this is Student's t interval.
The intervals do not include the error of assuming power laws over budgets.

Where there is one run for each budget, as in tables of published optima, or where no two budgets have three sizes, the
lowest run of each budget stands for the minimum (approach 1, the envelope) and intervals are Student's t from the
scatter about the laws.

What the data cannot tell is not fitted. Two lowest runs lie on a line whatever the noise, so an envelope needs three budgets
(published optima are taken as they are given). Where the best size is the same at every budget, or at the edge of the grid at
all but one, it reflects the grid: no power law of N* and D* is then fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from redraft.scaling.laws.multiplier import Array, Best, Estimate, PowerLaw, interval, line, power_law
from redraft.scaling.laws.parabola_bias import law_loss, optimum, parabola_bias
from redraft.scaling.laws.parametric import PRECISION
from redraft.scaling.records import Point

TOO_FEW, NOT_CONVEX = "too few sizes", "not convex"
NOT_BRACKETED, OFF_CENTRE = "minimum not bracketed", "off-centre"
GIVEN = "one run, taken as the best"
PARABOLAS, CORRECTED, ENVELOPE = "parabolas", "parabolas less their bias", "lowest run of each budget"
SAME_SIZE = 1e-9  # of ln N, below which sizes are one
ENOUGH = 6  # degrees of freedom at which an interval is within a quarter of its width with infinitely many


@dataclass(frozen=True)
class Noise:
    """The standard deviation of one run's loss, nats per token, from its seed and its evaluation together."""

    sd: float | None  # None: there is nothing to estimate it from
    dof: int  # degrees of freedom; 0: only the evaluation's part is known
    source: str  # in words
    modelled: bool = False  # from residuals of some curve, which may be the wrong one; else between seeds alone


@dataclass(frozen=True)
class Curve:
    """The runs of one family at one budget: m sizes, ascending, averaged over seeds."""

    family: str
    budget: float  # nominal FLOPs
    flops: float  # achieved FLOPs, geometric mean over runs
    log_params: Array  # [m]
    log_tokens: Array  # [m]
    loss: Array  # [m] nats per token
    runs: Array  # [m] how many were averaged
    evaluation: Array  # [m] variance of one run's loss from Monte Carlo evaluation, nats^2
    spread: float  # sum of squares between seeds, nats^2
    spread_dof: int

    def design(self, log_params: Array | None = None) -> Array:
        """Columns 1, u, u^2 of the parabola, u = ln N less the mean over the sizes."""
        x = self.log_params if log_params is None else log_params
        return np.vander(x - self.log_params.mean(), 3, increasing=True)


@dataclass(frozen=True)
class Minimum:
    """The best size at one budget."""

    budget: float  # nominal FLOPs
    flops: float  # achieved FLOPs
    params: Estimate  # N*
    tokens: Estimate  # D*
    loss: Estimate  # nats per token
    parabola: tuple[float, float, float] | None  # a, b, c over ln N
    sizes: int
    flags: tuple[str, ...]
    bias: tuple[float, float, float] | None = None  # subtracted: of ln N*, ln D*, ln loss*

    @property
    def is_vertex(self) -> bool:
        """Whether the numbers are a parabola's vertex, not merely the lowest run."""
        return not {TOO_FEW, NOT_CONVEX, NOT_BRACKETED, GIVEN} & set(self.flags)

    @property
    def given(self) -> bool:
        """Whether it is the only run of its budget."""
        return GIVEN in self.flags


@dataclass(frozen=True)
class IsoFlop:
    """Approach 2 for one family, or 1. The laws are None where fewer than two budgets have three sizes."""

    minima: tuple[Minimum, ...]
    params: PowerLaw | None  # exponent a; None too where the grid decides N*
    tokens: PowerLaw | None  # exponent b; with a
    loss: PowerLaw | None  # exponent -g
    noise: Noise
    method: str = PARABOLAS


def curves(points: Sequence[Point]) -> list[Curve]:
    """One curve per family and budget, ordered; points need budgets (`records.with_budgets`)."""
    ordered = sorted(points, key=lambda p: (p.family, p.budget, p.params, p.loss, p.tokens))
    return [_curve(list(group)) for _, group in groupby(ordered, key=lambda p: (p.family, p.budget))]


def _curve(points: list[Point]) -> Curve:
    cells = [list(group) for _, group in groupby(points, key=lambda p: p.params)]
    losses = [np.array([p.loss for p in cell]) for cell in cells]
    return Curve(
        family=points[0].family,
        budget=float(points[0].budget or points[0].flops),
        flops=_mean([p.flops for p in points]),
        log_params=np.log([cell[0].params for cell in cells]),
        log_tokens=np.array([np.mean([np.log(p.tokens) for p in cell]) for cell in cells]),
        loss=np.array([values.mean() for values in losses]),
        runs=np.array([len(cell) for cell in cells], float),
        evaluation=np.array([np.mean([(p.loss_se or 0.0) ** 2 for p in cell]) for cell in cells]),
        spread=float(sum(((values - values.mean()) ** 2).sum() for values in losses)),
        spread_dof=sum(len(cell) - 1 for cell in cells),
    )


def _mean(flops: Sequence[float]) -> float:
    """Geometric, and exact where all are equal."""
    return float(flops[0] * np.exp(np.mean(np.log(np.array(flops) / flops[0]))))


def estimate_noise(family: Sequence[Curve], study: Sequence[Curve]) -> Noise:
    """The noise of one run of a family that is part of a study.

    Pooled from the spread between seeds and the residuals of parabolas with more than three sizes: the family's own
    where these have 6 degrees of freedom, else the whole study's, and where these have not either, with the scatter of
    loss* about its power laws. Failing all, from Monte Carlo standard errors alone.
    """
    own, all_families = _pooled(family), _pooled(study)
    sources = [own] if own[1] >= ENOUGH else [all_families]
    if sources[0][1] < ENOUGH:
        sources.append(_scatter(study))
    total, dof = sum(s[0] for s in sources), sum(s[1] for s in sources)
    if dof:
        whose = "" if sources == [own] else ", all families together"
        seeds = sum(c.spread_dof for c in (family if sources == [own] else study))
        told = " and ".join(part for s in sources for part in s[2]) + whose
        return Noise(float(np.sqrt(total / dof)), dof, told, modelled=dof > seeds)
    known = np.concatenate([c.evaluation for c in family])
    if known.any():
        return Noise(float(np.sqrt(known.mean())), 0, "standard errors of evaluation alone, not of the seed")
    return Noise(None, 0, "unknown: one seed, no standard errors, no sizes or budgets to spare")


def _pooled(group: Sequence[Curve]) -> tuple[float, int, list[str]]:
    """Sum of squares in units of one run's variance, degrees of freedom, and what they come from."""
    spare = [c for c in group if len(c.loss) > 3]
    residuals = [c.loss - c.design() @ _solver(c, c.runs) @ c.loss for c in spare]
    total = sum(float((c.runs * r**2).sum()) for c, r in zip(spare, residuals)) + sum(c.spread for c in group)
    residual_dof, spread_dof = sum(len(c.loss) - 3 for c in spare), sum(c.spread_dof for c in group)
    parts = ["spread between seeds"] * bool(spread_dof) + ["residuals of the parabolas"] * bool(residual_dof)
    return total, residual_dof + spread_dof, parts


def _scatter(study: Sequence[Curve]) -> tuple[float, int, list[str]]:
    """The same from the minima of every family that has three budgets."""
    total, dof = 0.0, 0
    for _, group in groupby((c for c in study if len(c.loss) >= 3), key=lambda c: c.family):
        family = list(group)
        if len(family) > 2:
            vertices = [_vertex(c, c.loss[None], c.runs) for c in family]
            loss, x = np.array([v[1][0] for v in vertices]), np.log([c.flops for c in family])
            intercept, slope = line(x, np.log(loss))
            # The variance of a vertex's loss, in units of one run's: to first order its place does not matter.
            rows = [c.design(v[0]) @ _solver(c, c.runs) for c, v in zip(family, vertices)]
            unit = np.mean([(row**2 / c.runs).sum() for c, row in zip(family, rows)])
            total += float(((loss - np.exp(intercept + slope * x)) ** 2).sum() / unit)
            dof += len(family) - 2
    return total, dof, ["scatter of loss* about its laws"] * bool(dof)


@dataclass(frozen=True)
class Laws:
    """L(N, D) of a family, (E, A, B, alpha, beta): the estimate [1, 5] and resamples [R, 5]."""

    value: Array
    draws: Array


def fit_isoflop(
    family: Sequence[Curve], noise: Noise, seed: Sequence[int], resamples: int, laws: Laws | None = None
) -> tuple[IsoFlop, Best | None]:
    """Minima and power laws of one family's curves, and loss* over budgets (None without two budgets) to compare.

    With `laws` the bias of the parabolas under them is subtracted; `resamples` is then their number of draws.
    """
    rng = np.random.default_rng(seed)
    fits = [_fit_curve(curve, noise, rng, resamples, laws) for curve in family]
    minima = tuple(minimum for minimum, _ in fits)
    used = [fit for fit in fits if TOO_FEW not in fit[0].flags]
    if len(used) < 2:
        return IsoFlop(minima, None, None, None, noise), None
    # A size at the edge of the grid says only that N* is there or beyond.
    sure, loss = [fit for fit in used if fit[0].is_vertex], power_law(*_values(used, 2))
    sizes, tokens = (power_law(*_values(sure, part)) if len(sure) >= 2 else None for part in (0, 1))
    method = CORRECTED if any(m.bias for m in minima) else PARABOLAS
    return IsoFlop(minima, sizes, tokens, loss, noise, method), Best(*_values(used, 2))


def fit_envelope(family: Sequence[Curve], seed: Sequence[int], resamples: int) -> tuple[IsoFlop, Best | None]:
    """Approach 1: power laws through the lowest run of each budget, without budgets that a cheaper one beats.

    Sizes lie on a grid, so N* is off by up to half a step; Student's t from the scatter about the laws knows of it.
    """
    unknown = Noise(None, 0, "scatter about the laws")
    lone = len(family) > 1 and all(len(curve.loss) == 1 for curve in family)
    minima = tuple(_lowest(curve, GIVEN if lone else TOO_FEW) for curve in family)
    hull = [m for i, m in enumerate(minima) if i == 0 or m.loss.value < min(b.loss.value for b in minima[:i])]
    if len(hull) < (2 if lone else 3):
        return IsoFlop(minima, None, None, None, unknown, ENVELOPE), None
    flops = np.array([m.flops for m in hull])
    values = [np.array([v.value for v in column]) for column in zip(*((m.params, m.tokens, m.loss) for m in hull))]
    moves = np.ptp(np.log(values[0])) > SAME_SIZE
    sizes, tokens = (power_law(flops, v) if moves else None for v in values[:2])
    loss = power_law(flops, values[2])
    best = Best(flops, values[2], _scattered(flops, values[2], np.random.default_rng(seed), resamples))
    return IsoFlop(minima, sizes, tokens, loss, unknown, ENVELOPE), best


def _scattered(flops: Array, loss: Array, rng: np.random.Generator, resamples: int) -> Array | None:
    """Losses [R, B] redrawn with the scatter about their power law, B - 2 degrees of freedom; None for two budgets."""
    dof = len(flops) - 2
    if dof < 1:
        return None
    intercept, slope = line(np.log(flops), np.log(loss))
    total = ((np.log(loss) - intercept - slope * np.log(flops)) ** 2).sum()
    sd = np.sqrt(total / rng.chisquare(dof, (resamples, 1)))
    return loss * np.exp(sd * rng.standard_normal((resamples, len(flops))))


def _lowest(curve: Curve, flag: str) -> Minimum:
    low = int(curve.loss.argmin())
    logs = [Estimate(float(v[low])) for v in (curve.log_params, curve.log_tokens, np.log(curve.loss))]
    return _minimum(curve, logs, None, (flag,))


def _values(fits: Sequence[tuple[Minimum, Array | None]], part: int) -> tuple[Array, Array, Array | None]:
    """FLOPs [B], values [B] and resamples [R, B] of part 0: N*, 1: D*, 2: loss*."""
    flops = np.array([m.flops for m, _ in fits])
    values = np.array([(m.params, m.tokens, m.loss)[part].value for m, _ in fits])
    draws = [draw[part] for _, draw in fits if draw is not None]
    return flops, values, np.exp(np.stack(draws, axis=1)) if draws else None


def _fit_curve(
    curve: Curve, noise: Noise, rng: np.random.Generator, resamples: int, laws: Laws | None
) -> tuple[Minimum, Array | None]:
    """The minimum of one curve, and resamples [3, R] of ln N*, ln D*, ln loss*: None without noise or three sizes."""
    if len(curve.loss) < 3:
        return _lowest(curve, TOO_FEW), None
    if noise.sd is not None:
        noise = replace(noise, sd=max(noise.sd, PRECISION * float(curve.loss.mean())))
    weights = curve.runs if noise.sd is None else 1 / _variances(curve, noise, np.array([noise.sd**2]))[0]
    solver = _solver(curve, weights)
    coefficients = solver @ curve.loss
    flags = _flags(curve, coefficients)
    value, draws = _logs(curve, curve.loss[None], weights)[:, 0], None
    bias = None if laws is None or {NOT_CONVEX, NOT_BRACKETED} & set(flags) else _bias(curve, solver, laws.value)
    if laws is None or bias is None or not np.isfinite(bias).all():
        bias = None
        if noise.sd is not None:
            draws = _logs(curve, _redraw(curve, noise, curve.design() @ coefficients, rng, resamples), weights)
    else:
        value = value - bias[:, 0]
        losses = _redraw(curve, noise, law_loss(laws.value, curve.log_params, curve.log_tokens)[0], rng, resamples)
        draws = _logs(curve, losses, weights) - _kept(_bias(curve, solver, laws.draws), bias)
        draws += value[:, None] - optimum(curve.log_params, curve.log_tokens, laws.value)
    ends = [interval(v, None if draws is None else draws[i]) for i, v in enumerate(value)]
    least = _minimum(curve, ends, coefficients, flags)
    return replace(
        least, bias=None if bias is None else (float(bias[0, 0]), float(bias[1, 0]), float(bias[2, 0]))
    ), draws


def _bias(curve: Curve, solver: Array, laws: Array) -> Array:
    return parabola_bias(curve.log_params, curve.log_tokens, solver, laws)


def _kept(bias: Array, otherwise: Array) -> Array:
    """Bias [3, R], with the estimate's in place of resamples whose law has no optimum."""
    return np.where(np.isfinite(bias), bias, otherwise)


def _minimum(curve: Curve, logs: Sequence[Estimate], coefficients: Array | None, flags: tuple[str, ...]) -> Minimum:
    parabola = None
    if coefficients is not None:
        (a, b, c), x = coefficients.tolist(), float(curve.log_params.mean())
        parabola = (a - b * x + c * x * x, b - 2 * c * x, c)
    params, tokens, loss = (v.exp() for v in logs)
    return Minimum(curve.budget, curve.flops, params, tokens, loss, parabola, len(curve.loss), flags)


def _flags(curve: Curve, coefficients: Array) -> tuple[str, ...]:
    """What is wrong with a parabola. Off-centre: the vertex is outside the middle half of the sizes."""
    _, b, c = coefficients
    if c <= 0:
        return (NOT_CONVEX,)
    first, last = curve.log_params[[0, -1]]
    place = (curve.log_params.mean() - b / (2 * c) - first) / (last - first)
    if not 0 <= place <= 1:
        return (NOT_BRACKETED,)
    return () if 0.25 <= place <= 0.75 else (OFF_CENTRE,)


def _solver(curve: Curve, weights: Array) -> Array:
    """The matrix [3, m] that takes losses to the coefficients of the weighted least-squares parabola."""
    root = np.sqrt(weights)
    return np.asarray(np.linalg.pinv(curve.design() * root[:, None]) * root, np.float64)


def _vertex(curve: Curve, losses: Array, weights: Array) -> tuple[Array, Array]:
    """ln N* and loss* [R] for losses [R, m]: the vertex, or the lowest size where the sizes do not bracket one."""
    a, b, c = _solver(curve, weights) @ losses.T
    with np.errstate(divide="ignore", invalid="ignore"):
        log_params: Array = curve.log_params.mean() - b / (2 * c)
        loss: Array = a - b * b / (4 * c)
    first, last = curve.log_params[[0, -1]]
    bracketed = (c > 0) & (log_params >= first) & (log_params <= last) & (loss > 0)
    log_params[~bracketed] = curve.log_params[losses.argmin(1)][~bracketed]
    loss[~bracketed] = losses.min(1)[~bracketed]
    return log_params, loss


def _logs(curve: Curve, losses: Array, weights: Array) -> Array:
    """ln N*, ln D* and ln loss* [3, R]; D* is between the tokens of the neighbouring sizes, so that FLOPs are kept."""
    log_params, loss = _vertex(curve, losses, weights)
    return np.stack([log_params, np.interp(log_params, curve.log_params, curve.log_tokens), np.log(loss)])


def _redraw(curve: Curve, noise: Noise, fitted: Array, rng: np.random.Generator, resamples: int) -> Array:
    """Losses [R, m] as other seeds might have given them."""
    variance = np.full(resamples, (noise.sd or 0.0) ** 2)
    if noise.dof:
        variance *= noise.dof / rng.chisquare(noise.dof, resamples)
    sd = np.sqrt(_variances(curve, noise, variance))
    return np.maximum(fitted + sd * rng.standard_normal(sd.shape), 1e-9)


def _variances(curve: Curve, noise: Noise, variance: Array) -> Array:
    """Variance [R, m] of the cells' mean losses where one run's is `variance` [R]; the evaluation's part is a floor."""
    if noise.dof == 0:
        known = np.where(curve.evaluation > 0, curve.evaluation, variance[:, None])
        return known / curve.runs
    training = np.maximum(variance - curve.evaluation.mean(), 0.0)
    return (training[:, None] + curve.evaluation) / curve.runs
