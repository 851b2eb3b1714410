"""Confidence intervals of proportions and means, at 95 %. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

Z = 1.959964


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def wilson(right: float, n: float) -> Interval:
    """A share right / n of n >= 1 independent trials, by Wilson's score interval (1927): it is honest at 0 and at n.

    Where trials come in clusters (paraphrases about one person), n is the number of clusters: an upper estimate of the width.
    """
    share, z2 = right / n, Z * Z / n
    middle, half = share + z2 / 2, Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n))
    low, high = (middle - half) / (1 + z2), (middle + half) / (1 + z2)
    return Interval(share, max(0.0, min(low, share)), min(1.0, max(high, share)))


def of_mean(values: Sequence[float]) -> Interval:
    """The mean of independent values (seeds), by Student's t; of one value, an interval that says nothing."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, -math.inf, math.inf)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = float(student.ppf(0.975, n - 1)) * spread
    return Interval(mean, mean - half, mean + half)
