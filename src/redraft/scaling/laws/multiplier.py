"""Power laws of the best loss in compute, and the compute multiplier between two of them.

A family's best losses over budgets C follow loss* = A C^-g. The compute multiplier of family f against a reference is

    k(C) = C / C_ref,    E_ref + A_ref C_ref^-g_ref = loss*_f(C)

with C_ref the compute at which the reference reaches the loss that f reaches with C: k > 1 says that f needs k times
more compute. It need not be constant: in the figures of arXiv:2602.15014 that of MDLM rises with C, so it is given per
budget, with a geometric mean and its slope. The reference's law is the best loss of its L(N, D), if that fits its runs
(`law_of_best`). Else, within the losses that it reached, a power law that may have an irreducible loss E (see `reach`), and
the pure power law outside, as in the papers. Values outside are marked (`Ratio.extrapolated`): their intervals do not
include the error of the law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVEL = 0.95
_LEVEL_SLOPE = 1e-9  # d ln loss / d ln C that is arithmetic: a loss that stays
_FLOOR_BUDGETS = 4  # from which a law may have an irreducible loss
_ROUNDING = 1e-18  # squared deviations in log that are arithmetic, not data


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; no ends where nothing is known of the noise."""

    value: float
    low: float | None = None
    high: float | None = None

    def exp(self) -> Estimate:
        """The estimate of the exponential."""
        with np.errstate(over="ignore"):  # an end beyond all numbers is infinite
            value, low, high = (None if v is None else float(np.exp(v)) for v in (self.value, self.low, self.high))
        assert value is not None
        return Estimate(value, low, high)


@dataclass(frozen=True)
class PowerLaw:
    """value = scale C^exponent, C in FLOPs, by least squares over logarithms."""

    scale: Estimate
    exponent: Estimate
    budgets: int
    method: str  # of the interval: 'bootstrap', 't' or 'none'
    strays: bool = False  # the values leave the line by more than the noise explains

    def at(self, flops: float | Array) -> Array:
        """The law's value at budgets in FLOPs."""
        return np.exp(np.log(self.scale.value) + self.exponent.value * np.log(flops))


@dataclass(frozen=True)
class Best:
    """Loss* of a family over budgets, and R resamples of it if its noise is known."""

    flops: Array  # [B]
    loss: Array  # [B] nats per token
    draws: Array | None = None  # [R, B] nats per token
    bend: Reach | None = None  # the law beyond these losses, where an L(N, D) is trusted with it: scalars
    bend_draws: Reach | None = None  # [R]


@dataclass(frozen=True)
class Ratio:
    """The compute multiplier at one budget."""

    flops: float
    reference_flops: float  # what the reference needs for the same loss
    multiplier: Estimate
    extrapolated: bool  # the reference never had a loss this high, or this low


@dataclass(frozen=True)
class LossRatio:
    """The compute multiplier at one loss."""

    loss: float  # nats per token
    flops: float  # of the family's law at this loss
    reference_flops: float
    multiplier: Estimate
    extrapolated: bool  # one of the two never had a loss this high, or this low


@dataclass(frozen=True)
class Multiplier:
    """How much more compute a family needs than the reference for the same loss."""

    reference: str
    ratios: tuple[Ratio, ...]  # one per budget, ascending
    mean: Estimate  # geometric, over budgets
    trend: Estimate | None  # d ln k / d ln C; None for a single budget
    by_loss: tuple[LossRatio, ...] = ()  # descending loss


def interval(value: float, draws: Array | None) -> Estimate:
    """The central 95 % of the draws; no ends where more draws than that leaves out are not finite."""
    if draws is None or not draws.size or np.mean(~np.isfinite(draws)) > (1 - LEVEL) / 2:
        return Estimate(float(value))
    low, high = np.quantile(draws[np.isfinite(draws)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))


def student(value: float, standard_error: float, dof: int) -> Estimate:
    """Student's interval with `dof` >= 1 degrees of freedom."""
    from scipy.special import stdtrit

    half = float(stdtrit(dof, (1 + LEVEL) / 2)) * standard_error
    return Estimate(float(value), float(value - half), float(value + half))


def line(x: Array, y: Array) -> tuple[Array, Array]:
    """Intercept and slope of y [..., B] over x [B] by least squares, each [...]."""
    spread = x - x.mean()
    slope = (y * spread).sum(-1) / (spread**2).sum()
    return y.mean(-1) - slope * x.mean(), slope


def power_law(flops: Array, values: Array, draws: Array | None = None) -> PowerLaw:
    """value = scale C^exponent over B >= 2 budgets C (FLOPs), with R resamples `draws` [R, B] of the values if known.

    With draws the intervals are theirs (see `law_draws`). Without, they are Student's t with B - 2 degrees of freedom
    from the scatter about the line, which is wide for three budgets and none for two.
    """
    x, y = np.log(flops), np.log(values)
    intercept, slope = line(x, y)
    if draws is not None:
        lines, strays = law_draws(flops, values, draws)
        return PowerLaw(
            interval(float(intercept), lines[0]).exp(), interval(float(slope), lines[1]), len(x), "bootstrap", strays
        )
    if len(x) < 3:
        return PowerLaw(Estimate(float(intercept)).exp(), Estimate(float(slope)), len(x), "none")
    se = np.sqrt(((y - intercept - slope * x) ** 2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
    scale = student(float(intercept), float(se * np.sqrt((x**2).mean())), len(x) - 2).exp()
    return PowerLaw(scale, student(float(slope), float(se), len(x) - 2), len(x), "t")


def law_draws(flops: Array, values: Array, draws: Array) -> tuple[Array, bool]:
    """Resamples [2, R] of (ln scale, exponent), and whether the values stray from a power law.

    Where their scatter about the line exceeds the draws' in all but 1 % of them, the draws are widened about the
    estimate by the ratio of the two (Birge 1932): the law is then wrong or the noise is underestimated. (At 5 % a study
    of four families, with three laws each, would raise a false alarm every other time.)
    """
    x, noise = np.log(flops), np.log(draws) - np.log(values)
    intercept, slope = line(x, np.log(values))
    offsets = np.stack(line(x, noise))
    expected = ((noise - offsets[0][:, None] - offsets[1][:, None] * x) ** 2).sum(-1)
    scatter = ((np.log(values) - intercept - slope * x) ** 2).sum()
    strays = bool(scatter > _ROUNDING and len(x) > 2 and np.mean(expected >= scatter) < 0.01)
    widen = np.sqrt(scatter / expected.mean()) if strays and expected.mean() > 0 else 1.0
    return np.stack([intercept, slope])[:, None] + max(1.0, widen) * offsets, strays


@dataclass(frozen=True)
class Reach:
    """The compute at which the reference reaches a loss: loss = floor + exp(intercept) C^slope, arrays of one shape."""

    floor: Array
    intercept: Array
    slope: Array

    def log_flops(self, loss: Array) -> Array:
        """ln C for losses [..., B]; infinite at or below the floor, NaN where more compute does not help."""
        with np.errstate(divide="ignore", invalid="ignore"):
            above = np.log(np.maximum(loss - self.floor[..., None], 0.0)) - self.intercept[..., None]
            return above / np.where(self.slope < -_LEVEL_SLOPE, self.slope, np.nan)[..., None]


def reach(flops: Array, losses: Array) -> Reach:
    """The reference's law, fitted to losses [..., B] over budgets [B] by least squares of ln loss.

    From four budgets on with an irreducible loss, floor >= 0, as L(N, D) has one: between the budgets it follows a law
    that bends. Three budgets cannot tell a floor from an exponent, and get none.
    """
    x = np.log(flops)
    floor = np.zeros(losses.shape[:-1])
    if len(flops) >= _FLOOR_BUDGETS:
        low, high = floor, 0.98 * losses.min(-1)
        for _ in range(4):  # four rounds of 25 points: the floor to a millionth of the loss
            tried = low + (high - low) * np.linspace(0, 1, 25).reshape(-1, *[1] * low.ndim)
            best = np.argmin(_misfit(x, losses, tried), 0)
            step = (high - low) / 24
            floor = np.take_along_axis(tried, best[None], 0)[0]
            low, high = np.maximum(low, floor - step), np.minimum(high, floor + step)
    return Reach(floor, *line(x, np.log(losses - floor[..., None])))


def law_of_best(laws: Array, log_cost: float, log_flops: float) -> Reach:
    """The best loss over compute of laws L(N, D) [R, 5] of E, A, B, alpha, beta, where C = cost N D: a power law above E.

    Hoffmann et al. 2022, eq. 4. `log_flops`: ln of a budget among those of the runs.
    """
    floor, a, b, alpha, beta = laws.T
    log_nd, total = log_flops - log_cost, alpha + beta
    with np.errstate(divide="ignore", invalid="ignore"):
        log_n = (np.log(alpha * a) - np.log(beta * b) + beta * log_nd) / total
        above = a * np.exp(-alpha * log_n) + b * np.exp(-beta * (log_nd - log_n))
        slope = -alpha * beta / total
        return Reach(floor, np.log(above) - slope * log_flops, slope)


def _misfit(x: Array, losses: Array, floor: Array) -> Array:
    """Squared error of ln loss, [G, ...], of the best line under each floor [G, ...]."""
    intercept, slope = line(x, np.log(losses - floor[..., None]))
    law = floor[..., None] + np.exp(intercept[..., None] + slope[..., None] * x)
    return ((np.log(law) - np.log(losses)) ** 2).sum(-1)


@dataclass(frozen=True)
class Logs:
    """ln k over the budgets of a family [B], resamples [R, B] if known, and where the reference reached the loss [B]."""

    value: Array
    draws: Array | None
    inside: NDArray[np.bool_]

    def mean(self, draws_of: Array | None = None) -> Array:
        """Over the budgets whose loss the reference reached, or over all where it reached none."""
        measured = self.inside if self.inside.any() else ~self.inside
        return np.asarray((self.value if draws_of is None else draws_of)[..., measured].mean(-1))


def log_multiplier(best: Best, reference: Best) -> Logs | None:
    """ln k(C); None where the reference's loss does not fall with compute. Both need two budgets."""
    inside = (reference.loss.min() <= best.loss) & (best.loss <= reference.loss.max())
    value = np.log(best.flops) - log_flops(reference, reference.loss, best.loss, inside)
    if not np.isfinite(value).all():
        return None
    draws = None
    if best.draws is not None and reference.draws is not None:
        draws = np.log(best.flops) - log_flops(reference, reference.draws, best.draws, inside)
    return Logs(value, draws, inside)


def multiplier(best: Best, reference: Best, name: str) -> Multiplier | None:
    """The compute multiplier of a family against the reference called `name`, which needs at least two budgets.

    Its mean is over the budgets whose loss the reference reached, and over all where it reached none. Intervals where
    both have resamples. None where the reference's loss does not fall with compute.
    """
    k = log_multiplier(best, reference)
    if k is None:
        return None
    ratios = tuple(_ratio(best, i, k.value, k.draws, not k.inside[i]) for i in range(len(k.value)))
    mean = interval(float(k.mean()), None if k.draws is None else k.mean(k.draws)).exp()
    by_loss = multiplier_by_loss(best, reference)
    if len(k.value) < 2:
        return Multiplier(name, ratios, mean, None, by_loss)
    trend = line(np.log(best.flops), k.value)[1]
    trends = None if k.draws is None else line(np.log(best.flops), k.draws)[1]
    return Multiplier(name, ratios, mean, interval(float(trend), trends), by_loss)


def multiplier_by_loss(best: Best, reference: Best, losses: Array | None = None) -> tuple[LossRatio, ...]:
    """k at given losses (nats per token): the compute of the family's law over that of the reference's.

    Without `losses`, at those of the reference's power law at its budgets; the laws are those of `log_flops`. Empty where
    either does not fall with compute, or has one budget.
    """
    if min(len(best.loss), len(reference.loss)) < 2:
        return ()
    if losses is None:
        intercept, slope = line(np.log(reference.flops), np.log(reference.loss))
        losses = np.exp(intercept + slope * np.log(reference.flops))
    inside = np.all([(law.loss.min() <= losses) & (losses <= law.loss.max()) for law in (best, reference)], axis=0)
    (own, own_draws), (other, other_draws) = (_at(law, losses, inside) for law in (best, reference))
    if not np.isfinite([own, other]).all():
        return ()
    draws = None if own_draws is None or other_draws is None else own_draws - other_draws
    return tuple(
        LossRatio(float(loss), float(np.exp(own[i])), float(np.exp(other[i])), _k(own - other, i, draws), not inside[i])
        for i, loss in enumerate(losses)
    )


def _at(law: Best, losses: Array, inside: NDArray[np.bool_]) -> tuple[Array, Array | None]:
    draws = None if law.draws is None else log_flops(law, law.draws, losses, inside)
    return log_flops(law, law.loss, losses, inside), draws


def _k(log_k: Array, i: int, draws: Array | None) -> Estimate:
    return interval(log_k[i], None if draws is None else draws[:, i]).exp()


def log_flops(law: Best, of: Array, losses: Array, inside: NDArray[np.bool_]) -> Array:
    """ln C at which a family, with its best losses `of` [..., B], reaches `losses` [..., F].

    What L(N, D) says of the best loss, where it is trusted. Else the law of `reach` at the losses `inside` [F], and a pure
    power law at the others.
    """
    bend = law.bend if of.ndim == 1 else law.bend_draws
    if bend is not None:
        return bend.log_flops(losses)
    return np.where(inside, reach(law.flops, of).log_flops(losses), _pure(law, of).log_flops(losses))


def _pure(law: Best, of: Array) -> Reach:
    if of.ndim == 1:
        intercept, slope = line(np.log(law.flops), np.log(of))
    else:
        (intercept, slope), _ = law_draws(law.flops, law.loss, of)
    return Reach(np.zeros_like(intercept), intercept, slope)


def _ratio(best: Best, i: int, log_k: Array, draws: Array | None, extrapolated: bool) -> Ratio:
    flops, k = float(best.flops[i]), _k(log_k, i, draws)
    return Ratio(flops, flops / k.value, k, bool(extrapolated))
