"""Densities that training draws its times from: uniform, a power of it, or bell-shaped (Hong et al. 2026, arXiv:2605.13026).

A density is used through the inverse of its cumulative distribution, t = F^-1(u), so that uniforms u which are evenly spread
give times that are evenly spread under the density. An expectation over uniform times is kept by the importance weight

    E_t f(t) = E_u f(F^-1(u)) dt/du,   dt/du = 1 / density(t)

t in [0, 1]; 0 is text, 1 is noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError, unknown

NAMES = ("uniform", "bell")
WIDTHS = (0.05, 10.0)  # narrower, and a bound's weights at the ends are beyond 1e20; wider is uniform
_CDF = torch.special.ndtr


class TimeDensity(ABC):
    """Times and uniforms are float64, of any shape."""

    @abstractmethod
    def times(self, u: Tensor) -> Tensor:
        """F^-1(u) for u in (0, 1], above 0 as u is."""

    @abstractmethod
    def weight(self, u: Tensor) -> Tensor | None:
        """dt/du at u; None where it is 1 everywhere."""


@dataclass(frozen=True)
class Uniform(TimeDensity):
    def times(self, u: Tensor) -> Tensor:
        return u

    def weight(self, u: Tensor) -> None:
        return None


@dataclass(frozen=True)
class Power(TimeDensity):
    """t = u^exponent: more draws near t = 0, for bounds whose integrand grows there faster than its mean."""

    exponent: int

    def times(self, u: Tensor) -> Tensor:
        return u**self.exponent

    def weight(self, u: Tensor) -> Tensor:
        return self.exponent * u ** (self.exponent - 1)


@dataclass(frozen=True)
class Bell(TimeDensity):
    """A normal density of that mean and width (standard deviation), cut to [0, 1].

    Fewer draws where nearly all or nearly nothing is hidden. `UserError`: mean not in [0, 1], width not in [0.05, 10].
    """

    mean: float = 0.5
    width: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.mean <= 1:
            raise UserError(f"family.time_mean must be in [0, 1], got {self.mean}")
        if not WIDTHS[0] <= self.width <= WIDTHS[1]:
            raise UserError(f"family.time_width must be in [{WIDTHS[0]}, {WIDTHS[1]:g}], got {self.width}")

    def density(self, t: Tensor) -> Tensor:
        z = (t - self.mean) / self.width
        return (-z * z / 2).exp() / (math.sqrt(2 * math.pi) * self.width * self._mass())

    def cumulative(self, t: Tensor) -> Tensor:
        """F(t)."""
        low = t.new_tensor(-self.mean / self.width)
        return (_CDF((t - self.mean) / self.width) - _CDF(low)) / self._mass()

    def times(self, u: Tensor) -> Tensor:
        """Above the mean from the other end, where normal probabilities near 1 would have lost their digits."""
        low, high = self.mean / self.width, (1 - self.mean) / self.width
        start, end = (_CDF(u.new_tensor(-edge)) for edge in (low, high))
        below = start + u * self._mass()
        above = end + (1 - u) * self._mass()
        z = torch.where(below < 0.5, torch.special.ndtri(below), -torch.special.ndtri(above))
        return (self.mean + self.width * z).clamp(2.0**-53, 1)

    def weight(self, u: Tensor) -> Tensor:
        return 1 / self.density(self.times(u))

    def _mass(self) -> float:
        """Of the whole normal density inside [0, 1]."""
        phi = lambda z: math.erfc(-z / math.sqrt(2)) / 2
        return phi((1 - self.mean) / self.width) - phi(-self.mean / self.width)


@dataclass(frozen=True, kw_only=True)
class TimeOption:
    """The settings of a family with times: `time` by name, and of "bell" its mean and width. They matter to training alone:
    a loss that is the bound is weighted by 1 / density, so that its expectation stays, a plain cross-entropy is not; what
    is reported is drawn uniformly."""

    time: str = "uniform"
    time_mean: float = 0.5
    time_width: float = 0.2

    @property
    def density(self) -> TimeDensity:
        """Raises `UserError` for settings that are none."""
        if self.time not in NAMES:
            raise unknown("time", self.time, NAMES)
        bell = Bell(self.time_mean, self.time_width)
        return bell if self.time == "bell" else Uniform()
