"""One fit of L(N, D) to several families with shared terms, with a test of the sharing.

Families trained on the same text have its entropy in common: one E is the least that an ideal model of either would
reach (of a bound, that plus its slack). Three models of log loss, by least squares: every family for itself, one E for
all, one E, alpha and beta for all (then families differ by A and B alone, that is by factors of size and tokens). Each of
the latter is tested against the first: F = (rise of the sum of squares / parameters saved) / (residual variance).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from redraft.scaling.laws.least_squares import EXPONENTS, PARAMETERS, Axes
from redraft.scaling.laws.multiplier import Array
from redraft.scaling.laws.parametric import Law, columns
from redraft.scaling.records import Point

SEPARATE = "every family for itself"
MODELS: dict[str, tuple[int, ...]] = {
    SEPARATE: (),
    "one E": (0,),
    "one E, alpha and beta": (0, 3, 4),
}  # places in theta
UNLIKELY = 0.05


@dataclass(frozen=True)
class Shared:
    """One model of all families."""

    name: str
    parameters: int
    squares: float  # sum of squares of log residuals
    aic: float  # corrected for few runs; infinite where runs do not exceed parameters by two
    p_value: float | None  # of the F test against every family for itself
    laws: dict[str, Law]


@dataclass(frozen=True)
class Joint:
    """The models, from no sharing to most, and the one with most sharing that is not rejected at 5 %."""

    models: tuple[Shared, ...]
    supported: str


def fit_joint(runs: Mapping[str, Sequence[Point]], laws: Mapping[str, Law]) -> Joint | None:
    """All models for the families that have a law of their own; None for fewer than two, or too few runs for a test."""
    names = sorted(laws)
    data = {name: columns(runs[name]) for name in names}
    total = sum(len(loss) for *_, loss in data.values())
    if len(names) < 2 or total <= PARAMETERS * len(names) + 2:
        return None
    problem = _Problem(data)
    start = np.stack([problem.axes.theta(laws[name].array) for name in names])
    models: list[Shared] = []
    for name, places in MODELS.items():
        theta, squares = problem.fit(start, places)
        models.append(_model(name, places, problem, theta, squares, models))
    kept = [model.name for model in models if model.p_value is None or model.p_value >= UNLIKELY]
    return Joint(tuple(models), kept[-1])


def _model(
    name: str, places: tuple[int, ...], problem: _Problem, theta: Array, squares: float, before: Sequence[Shared]
) -> Shared:
    from scipy.special import fdtrc

    families, n = len(theta), len(problem.log_loss)
    k = PARAMETERS * families - len(places) * (families - 1)
    p_value = None
    if before:
        free = before[0]
        rise = max(squares - free.squares, 0.0) / (free.parameters - k)
        dof = n - free.parameters
        p_value = float(fdtrc(free.parameters - k, dof, rise / max(free.squares / dof, 1e-14)))
    few = n - k - 2  # k and the variance are estimated
    aic = n * np.log(max(squares, 1e-300) / n) + 2 * (k + 1) * n / few if few > 0 else np.inf
    laws = {f: Law(*problem.axes.plain(row).tolist()) for f, row in zip(problem.names, theta)}
    return Shared(name, k, squares, float(aic), p_value, laws)


class _Problem:
    """The runs of all families in common axes, in which shared parameters are the same numbers."""

    def __init__(self, data: Mapping[str, tuple[Array, Array, Array]]) -> None:
        self.names = list(data)
        n, d, loss = (np.concatenate(column) for column in zip(*data.values()))
        self.axes, self.log_loss = Axes(n, d), np.log(loss)
        self.family = np.repeat(np.arange(len(data)), [len(loss) for *_, loss in data.values()])

    def fit(self, start: Array, places: tuple[int, ...]) -> tuple[Array, float]:
        """Thetas [F, 5] of least squares with the parameters at `places` equal, and the sum of squares."""
        from scipy.optimize import least_squares

        slot = self._slots(len(start), places)
        first = np.zeros(slot.max() + 1)
        np.add.at(first, slot, start)
        first /= np.bincount(slot.ravel())
        low, high = np.full_like(first, -60.0), np.full_like(first, 60.0)
        exponents = np.unique(slot[:, 3:])
        low[exponents], high[exponents] = np.log(EXPONENTS)
        first = np.clip(first, low + 1e-9, high - 1e-9)
        found = least_squares(
            lambda x: self._residual(x[slot])[0],
            first,
            jac=lambda x: self._jacobian(x[slot], slot),
            bounds=(low, high),
            x_scale="jac",
            xtol=1e-13,
            ftol=1e-13,
            gtol=1e-13,
            max_nfev=2000,
        )
        return found.x[slot], float(2 * found.cost)

    def _slots(self, families: int, places: tuple[int, ...]) -> NDArray[np.int_]:
        """Which unknown each family's parameter [F, 5] is."""
        slot = np.zeros((families, PARAMETERS), int)
        following = 0
        for place in range(PARAMETERS):
            width = 1 if place in places else families
            slot[:, place] = following + np.arange(families) % width
            following += width
        return slot

    def _residual(self, theta: Array) -> tuple[Array, Array]:
        """Log residuals [n] and their derivatives [n, 5] by each run's own parameters."""
        predicted, slopes = self.axes.log_loss(theta)
        rows = np.arange(len(self.log_loss))
        return predicted[self.family, rows] - self.log_loss, slopes[self.family, :, rows]

    def _jacobian(self, theta: Array, slot: NDArray[np.int_]) -> Array:
        jacobian = np.zeros((len(self.log_loss), slot.max() + 1))
        own = self._residual(theta)[1]
        rows = np.arange(len(own))
        for place in range(PARAMETERS):
            jacobian[rows, slot[self.family, place]] += own[:, place]
        return jacobian
