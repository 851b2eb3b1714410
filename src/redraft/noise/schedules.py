"""Noise schedules: alpha(t), the share of tokens that survive to time t, with its derivative.

t = 0 is text (alpha = 1), t = 1 is noise. A schedule returns the pair that belongs together.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


class Schedule(ABC):
    """t in [0, 1], any shape -> (alpha, d alpha / dt), of the same shape."""

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Linear(Schedule):
    """alpha = 1 - t. At t = 1 nothing is left, so the prior is reached exactly and the bound has no prior term."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, -t.new_ones(()).expand_as(t)


@dataclass(frozen=True)
class LogLinear(Schedule):
    """alpha = 1 - (1 - eps) t, so sigma = -log alpha stays finite (MDLM and Duo code, eps = 1e-3).

    A share eps of the text survives at t = 1: a bound must then pay KL(q(x_1 | x_0) | prior).
    """

    eps: float = 1e-3

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - (1 - self.eps) * t, t.new_full((), self.eps - 1).expand_as(t)


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = 1 - cos(pi/2 (1 - t))."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = math.pi / 2 * (1 - t)
        return 1 - angle.cos(), -math.pi / 2 * angle.sin()


SCHEDULES: dict[str, type[Schedule]] = {"linear": Linear, "log_linear": LogLinear, "cosine": Cosine}
