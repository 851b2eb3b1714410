"""Noise schedules: alpha(t), the probability that a token is unchanged at time t, with its derivative.

t = 0 is text (alpha = 1), t = 1 is noise. Calling a schedule returns the pair (alpha, d alpha / dt).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Schedule(ABC):
    """t in [0, 1], any shape -> (alpha, d alpha / dt), of the same shape."""

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Linear(Schedule):
    """alpha = 1 - t. At t = 1 nothing is left, so the prior is reached exactly and the bound has no prior term.

    >>> alpha, dalpha = Linear()(torch.tensor([0.0, 0.25, 1.0]))
    >>> alpha, dalpha
    (tensor([1.0000, 0.7500, 0.0000]), tensor([-1., -1., -1.]))
    """

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


@dataclass(frozen=True)
class Hybrid(Schedule):
    """GIDD's mixing schedule, which also says towards what text goes (arXiv:2503.04482, section 4, gamma = 1).

        alpha = (1 - t) / C,   (1 - alpha) pi = (t [MASK] + c) / C,   c = B sqrt(t (1 - t)) for each of V text ids

    C = 1 + V c, and B = 2 p_u / (V (1 - p_u)) makes `uniform` = p_u the share of uniform noise at t = 1/2, where there is
    most of it. Text at t = 0, [MASK] alone at t = 1. p_u = 0 is `Linear`, and pi = [MASK].
    """

    vocab: int
    uniform: float

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        total, odds = 1 + self.vocab * self._each(t), (1 - t) / t.clamp(min=torch.finfo(t.dtype).tiny)
        # (1 - t) C' = V B (1/2 - t) sqrt((1 - t) / t): text vanishes at an infinite rate at t = 0, unless p_u = 0.
        return (1 - t) / total, -1 / total - self.mass * (0.5 - t) * odds.sqrt() / total**2

    def masked(self, t: Tensor) -> Tensor:
        """pi_t([MASK]); each text id has an even share of the rest."""
        odds = (1 - t) / t.clamp(min=torch.finfo(t.dtype).tiny)
        return 1 / (1 + self.mass * odds.sqrt())

    def noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(1 - alpha) pi at [MASK] and at any text id, each of the shape of `t`."""
        total = 1 + self.vocab * self._each(t)
        return t / total, self._each(t) / total

    @property
    def mass(self) -> float:
        """V B."""
        return 2 * self.uniform / (1 - self.uniform)

    def _each(self, t: Tensor) -> Tensor:
        return self.mass / self.vocab * (t * (1 - t)).sqrt()


SCHEDULES: dict[str, type[Schedule]] = {"linear": Linear, "log_linear": LogLinear, "cosine": Cosine}
