"""Least squares and Huber fits of L(N, D) = E + A / N^alpha + B / D^beta, many starts or resamples at once.

The loss of a fit is the sum over runs of Huber(log L(N, D) - log loss), delta = 1e-3 (arXiv:2203.15556, eq. 6), or half
the square: `SQUARES`, a delta above every residual.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from redraft.scaling.laws.multiplier import Array

DELTA = 1e-3  # Huber's, in units of log loss
SQUARES = 1e6
EXPONENTS = (0.02, 2.5)  # searched; published ones are .2 to .6
PARAMETERS = 5
Rows = NDArray[np.intp] | NDArray[np.bool_]
_BLOCK = 250_000  # numbers in one array: what stays in cache


class Axes:
    """Sizes and token counts in centred logarithms, in which the law's parameters are all of order one.

    theta [..., 5] is (ln E, ln A', ln B', ln alpha, ln beta), with A' / e^(alpha x) = A / N^alpha. `plain` parameters
    [..., 5] are (E, A, B, alpha, beta).
    """

    def __init__(self, params: Array, tokens: Array) -> None:
        self.middle = np.array([np.log(params).mean(), np.log(tokens).mean()])
        self.x = np.log(params) - self.middle[0]  # [n]
        self.z = np.log(tokens) - self.middle[1]

    def theta(self, plain: Array) -> Array:
        """Of plain parameters [..., 5]; a part that is absent stays negligible."""
        linear, exponents = np.log(np.maximum(plain[..., :3], 1e-300)), plain[..., 3:]
        linear[..., 1:] -= exponents * self.middle
        return np.concatenate([linear, np.log(exponents)], -1)

    def plain(self, theta: Array) -> Array:
        """Of theta [..., 5]."""
        exponents, linear = np.exp(theta[..., 3:]), theta[..., :3].copy()
        linear[..., 1:] += exponents * self.middle
        with np.errstate(over="ignore"):
            return np.concatenate([np.exp(linear), exponents], -1)

    def log_loss(self, theta: Array) -> tuple[Array, Array]:
        """log L [S, n] and its derivatives [S, 5, n] at theta [S, 5]."""
        alpha, beta = np.exp(theta[:, 3, None]), np.exp(theta[:, 4, None])
        slopes = np.empty((len(theta), PARAMETERS, len(self.x)))
        slopes[:, 3], slopes[:, 4] = -alpha * self.x, -beta * self.z
        parts = slopes[:, :3]
        parts[:] = theta[:, :3, None]
        parts[:, 1:] += slopes[:, 3:]
        top = parts.max(1)
        np.exp(parts - top[:, None], out=parts)
        total = parts.sum(1)
        parts /= total[:, None]
        slopes[:, 3:] *= slopes[:, 1:3]
        return top + np.log(total), slopes


@dataclass(frozen=True)
class Objective:
    """What is minimised: the data [n] or [S, n], Huber's delta, the weights of the runs and the free parameters."""

    log_loss: Array
    delta: float = DELTA
    counts: Array | None = None  # how often each run was drawn, like log_loss
    free: tuple[bool, ...] = field(default=(True,) * PARAMETERS)

    def part(self, rows: Rows) -> Objective:
        """The objective of some of the S starts."""
        pick = lambda values: values if values is None or values.ndim == 1 else values[rows]
        return Objective(pick(self.log_loss), self.delta, pick(self.counts), self.free)

    def value(self, residual: Array) -> Array:
        size = np.minimum(np.abs(residual), 1e100)  # a step far out must not overflow
        loss = np.where(size < self.delta, size**2 / 2, self.delta * (size - self.delta / 2))
        return (loss if self.counts is None else loss * self.counts).sum(-1)

    def weights(self, residual: Array) -> Array:
        """Of iteratively reweighted least squares: min(1, delta / |r|)."""
        weights = np.minimum(1.0, self.delta / np.maximum(np.abs(residual), 1e-300))
        return weights if self.counts is None else weights * self.counts


def descend(theta: Array, axes: Axes, objective: Objective, iterations: int) -> tuple[Array, Array]:
    """Levenberg-Marquardt from S starts: thetas [S, 5] and sums of losses [S]; a block of starts at a time."""
    size = max(1, _BLOCK // (PARAMETERS * len(axes.x)))
    done = [
        _descend(theta[rows], axes, objective.part(rows), iterations)
        for rows in np.array_split(np.arange(len(theta)), -(-len(theta) // size))
    ]
    return np.concatenate([t for t, _ in done]), np.concatenate([v for _, v in done])


def _descend(theta: Array, axes: Axes, objective: Objective, iterations: int) -> tuple[Array, Array]:
    """Each quadratic of reweighted least squares lies above Huber's loss and touches it, so lowering it lowers the loss.

    A start is dropped once its steps stop to pay: no gain of 1e-14 at any damping, or none of 1e-10 in 8 steps.
    """
    theta, value = theta.copy(), np.full(len(theta), np.inf)
    live = np.arange(len(theta))
    state = _State(theta, axes, objective)
    for _ in range(iterations):
        state.step(axes)
        over = state.over()
        if over.any():
            theta[live[over]], value[live[over]] = state.theta[over], state.value[over]
            live = live[~over]
            if not len(live):
                return theta, value
            state.keep(~over)
    theta[live], value[live] = state.theta, state.value
    return theta, value


class _State:
    """Where the live starts of a descent stand."""

    def __init__(self, theta: Array, axes: Axes, objective: Objective) -> None:
        self.theta, self.objective = theta.copy(), objective
        self.predicted, self.slopes = axes.log_loss(theta)
        self.value = objective.value(self.predicted - objective.log_loss)
        self.damping = np.full(len(theta), 1e-3)
        self.stale = np.zeros(len(theta), int)

    def keep(self, rows: Rows) -> None:
        for name in ("theta", "predicted", "slopes", "value", "damping", "stale"):
            setattr(self, name, getattr(self, name)[rows])
        self.objective = self.objective.part(rows)

    def over(self) -> NDArray[np.bool_]:
        return (self.damping > 1e6) | (self.stale >= 8)

    def step(self, axes: Axes) -> None:
        trial = self._trial()
        predicted, slopes = axes.log_loss(trial)
        value = self.objective.value(predicted - self.objective.log_loss)
        better = value < self.value
        gain = np.where(better, self.value - value, 0.0)
        self.stale = np.where(gain > 1e-10 * self.value, 0, self.stale + 1)
        self.theta[better], self.predicted[better], self.slopes[better] = (
            trial[better],
            predicted[better],
            slopes[better],
        )
        self.value = np.where(better, value, self.value)
        self.damping = np.where(better, self.damping / 5, np.minimum(self.damping * 4, 1e8))

    def _trial(self) -> Array:
        residual = self.predicted - self.objective.log_loss
        weighted = self.slopes * self.objective.weights(residual)[:, None]
        hessian = weighted @ self.slopes.transpose(0, 2, 1)
        gradient = (weighted @ residual[:, :, None])[:, :, 0]
        fixed = ~np.array(self.objective.free)
        hessian[:, fixed, :] = hessian[:, :, fixed] = gradient[:, fixed] = 0.0
        diagonal = np.einsum("sii->si", hessian)
        diagonal += self.damping[:, None] * diagonal + 1e-14 * diagonal.max(1, keepdims=True) + 1e-300
        trial: Array = self.theta - np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        trial[:, 3:] = np.clip(trial[:, 3:], *np.log(EXPONENTS))
        return trial
