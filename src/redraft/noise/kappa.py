"""Schedules of Psi-samplers: kappa(t) in [0, 1], the posterior's share of a step, and time grids.

A Psi step (sampling/psi.py) redraws a visible token with probability sigma = (1 - kappa)(1 - alpha_s). ReMDM (Wang et al.
2025, arXiv:2503.00307, section 4) speaks of sigma, and lets it reach min(1, (1 - alpha_s) / alpha_t); kappa = 0 stops it
at 1 - alpha_s, so a larger sigma is cut there, as in the code of the Psi-samplers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.noise.schedules import Schedule


class Kappa(ABC):
    """(alpha_t, alpha_s), any shape, alpha_t <= alpha_s -> kappa of that shape, in [0, 1]."""

    @abstractmethod
    def __call__(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Constant(Kappa):
    """1: the posterior alone (ancestral). 0: predict the text, then corrupt it afresh (predictor-corrector)."""

    value: float

    def __call__(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        return torch.full_like(alpha_s, self.value)


@dataclass(frozen=True)
class Sigma(Kappa):
    """sigma = eta."""

    eta: float

    def __call__(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        return _kappa(torch.full_like(alpha_s, self.eta), alpha_s)


@dataclass(frozen=True)
class Cap(Kappa):
    """ReMDM-cap: sigma = min(eta, (1 - alpha_s) / alpha_t)."""

    eta: float

    def __call__(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        return _kappa(((1 - alpha_s) / alpha_t).clamp(max=self.eta), alpha_s)


@dataclass(frozen=True)
class Rescale(Kappa):
    """ReMDM-rescale: sigma = eta min(1, (1 - alpha_s) / alpha_t). (Not eta min(eta, .), which is eta squared.)"""

    eta: float

    def __call__(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        return _kappa(self.eta * ((1 - alpha_s) / alpha_t).clamp(max=1), alpha_s)


KAPPAS: dict[str, type[Sigma] | type[Cap] | type[Rescale]] = {"sigma": Sigma, "cap": Cap, "rescale": Rescale}


def even_times(steps: int) -> Tensor:
    """t = 1 to t = 0 in equal steps: [steps + 1], float64."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def loop_times(schedule: Schedule, steps: int, alpha: float, high: float, middle: float) -> Tensor:
    """ReMDM-loop: down to the time where the schedule is `alpha`, stay, and down to 0: [steps + 1], float64.

    `high` and `middle` are shares of the steps; every part keeps at least one, so `steps` is at least 3.
    """
    first = min(max(round(high * steps), 1), steps - 2)
    stay = min(max(round(middle * steps), 1), steps - 1 - first)
    plateau = time_at(schedule, alpha)
    down = torch.linspace(1, 0, first + 1, dtype=torch.float64) * (1 - plateau) + plateau
    rest = torch.linspace(1, 0, steps - first - stay + 1, dtype=torch.float64) * plateau
    return torch.cat([down, rest.new_full((stay - 1,), plateau), rest])


def time_at(schedule: Schedule, alpha: float) -> float:
    """The t at which a falling schedule is `alpha`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        at = float(schedule(torch.tensor(middle, dtype=torch.float64))[0])
        low, high = (middle, high) if at > alpha else (low, middle)
    return high


def _kappa(sigma: Tensor, alpha_s: Tensor) -> Tensor:
    """1 - sigma / (1 - alpha_s), cut to [0, 1]; 1 where alpha_s = 1 and there is nothing to redraw."""
    return torch.where(alpha_s < 1, 1 - sigma / (1 - alpha_s), 1.0).clamp(0, 1)
