"""The power of a comparison: the smallest difference that a t test sees, and the seeds that a difference needs. No torch.

Two arms of n seeds each, a run's loss having the standard deviation sd. Independent seeds: Student's t with 2 (n - 1) degrees
of freedom and the standard error sd sqrt(2 / n). Paired seeds (both arms train on the same text in the same order, with the
same random numbers: common random numbers), whose losses correlate by rho: the t of the differences, n - 1 degrees of freedom
and sd sqrt(2 (1 - rho) / n). Under a difference d the statistic is noncentral t with d / standard error, so the power of the
two-sided test at 5 % is exact: P(|t'| > t_.975).  Cohen 1988, "Statistical Power Analysis", ch. 2; Johnson, Kotz and
Balakrishnan 1995, "Continuous Univariate Distributions" 2, ch. 31.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from redraft.scaling.laws.multiplier import LEVEL, Estimate

POWER = 0.8  # at which a difference counts as one that can be seen
MOST_SEEDS = 2**20


@dataclass(frozen=True)
class Design:
    """Two arms of `seeds` runs each; `correlation`: of their losses where seeds are paired, else None."""

    seeds: int
    correlation: float | None = None

    @property
    def dof(self) -> int:
        return (1 if self.correlation is not None else 2) * (self.seeds - 1)

    def error(self, sd: float) -> float:
        """Standard error of the difference of the two means, in the units of `sd`."""
        return sd * math.sqrt(2 * (1 - (self.correlation or 0.0)) / self.seeds)


def power(difference: float, error: float, dof: float) -> float:
    """Of the two-sided t test at 5 %, where the difference is true and its standard error is estimated with `dof`."""
    from scipy.special import nctdtr

    edge, shift = _edge(dof), abs(difference) / error
    if math.isinf(dof):
        return _normal(shift - edge) + _normal(-shift - edge)
    # The lower tail is the upper one of -shift.
    return float((1 - nctdtr(dof, shift, edge)) + (1 - nctdtr(dof, -shift, edge)))


def detectable(error: float, dof: float) -> float:
    """The smallest true difference that the test finds at 80 % power; infinite without a degree of freedom."""
    from scipy.optimize import brentq

    if dof < 1 or math.isinf(error):
        return math.inf
    if error == 0:
        return 0.0
    edge = _edge(dof)
    return error * float(brentq(lambda shift: power(shift, 1.0, dof) - POWER, 0.1 * edge, 3 * edge + 3, xtol=1e-12))


def detectable_by(design: Design, sd: float) -> float:
    """The same of a design, nats where `sd` is."""
    return detectable(design.error(sd), design.dof)


def seeds_needed(difference: float, sd: float, correlation: float | None = None) -> int | None:
    """The fewest seeds an arm, two or more, with which the difference is seen; None where a million are too few."""
    enough = lambda seeds: detectable_by(Design(seeds, correlation), sd) <= abs(difference)
    found = 2 + bisect_left(range(2, MOST_SEEDS + 1), True, key=enough)
    return found if found <= MOST_SEEDS else None


def compute_factor(difference: float, slope: float) -> float:
    """The factor of compute that is worth a difference: e^(difference / slope), slope = -d loss / d ln C > 0, in nats."""
    return math.exp(min(difference / slope, 700.0))


def could_have_seen(gap: Estimate) -> float | None:
    """Of a difference with a 95 % interval: the smallest that would have been seen at 80 % power, by normal errors."""
    if gap.low is None or gap.high is None:
        return None
    return detectable((gap.high - gap.low) / (2 * _edge(math.inf)), math.inf)


def _edge(dof: float) -> float:
    """Where the test rejects: Student's quantile, or the normal's for infinite degrees of freedom."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri((1 + LEVEL) / 2) if math.isinf(dof) else stdtrit(dof, (1 + LEVEL) / 2))


def _normal(z: float) -> float:
    from scipy.special import ndtr

    return float(ndtr(z))
