"""The loss surface L(N, D) of a family from its fits, and the uncertainty of the best loss at an untrained budget.

Where no L(N, D) was fitted (published optima), the one that has these optima is used. If N* = n C^a, D* = d C^b with
a + b = 1 and L* = l C^-g, and L = A / N^alpha + B / D^beta without an irreducible loss, then alpha = g / a, beta = g / b, and
A / N*^alpha = L* beta / (alpha + beta) at every budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from redraft.errors import UserError
from redraft.scaling.laws.isoflop import TOO_FEW, IsoFlop
from redraft.scaling.laws.multiplier import Estimate, line, student
from redraft.scaling.laws.parametric import Law
from redraft.scaling.results import FamilyFit

RESAMPLES = 2000


@dataclass(frozen=True)
class LossSurface:
    """A family's law, and the budgets (FLOPs) that it rests on. Training costs `cost` N D FLOPs."""

    family: str
    kind: str | None  # of its losses: 'exact', 'bound', or not stated
    law: Law
    fitted: bool  # as L(N, D); else derived from the optima, with no irreducible loss
    cost: float
    budgets: tuple[float, float]
    sizes: tuple[float, float]  # parameters of its runs, from the fewest to the most
    trained: tuple[float, float]  # tokens of its runs
    optima: IsoFlop

    def loss(self, params: float, tokens: float) -> float:
        return float(self.law.at(np.array(params), np.array(tokens)))

    def tokens_for(self, params: float, loss: float) -> float:
        """Tokens with which N parameters reach a loss; infinite where they never do."""
        room = loss - self.law.E - self.law.A / params**self.law.alpha
        return math.inf if room <= 0 else float((self.law.B / room) ** (1 / self.law.beta))

    def outside(self, params: float, tokens: float) -> dict[str, float]:
        """How many times the budget, the size and the tokens are above the study's largest or below its smallest; else 1."""
        given = {"budget": (self.cost * params * tokens, self.budgets), "size": (params, self.sizes)}
        given |= {"tokens": (tokens, self.trained)}
        return {name: max(1.0, value / most, least / value) for name, (value, (least, most)) in given.items()}

    def off_optimum(self, params: float, tokens: float) -> float:
        """How many times size or tokens are outside the study's and also beyond the best ones of that budget: 1 if not."""
        assert self.optima.params and self.optima.tokens
        flops, far = self.cost * params * tokens, 1.0
        for value, law, (least, most) in (
            (params, self.optima.params, self.sizes),
            (tokens, self.optima.tokens, self.trained),
        ):
            best = float(law.at(flops))
            far = max(far, value / max(most, best), min(least, best) / value)
        return far

    def spread(self, flops: float) -> Estimate:
        """Relative uncertainty of the law's best loss at a budget: 1, with its 95 % interval.

        From the intervals of the minima, redrawn and fitted again; from their scatter about the line where they have none.
        """
        used = [m for m in self.optima.minima if TOO_FEW not in m.flags or m.given]
        x, y = np.log([m.flops for m in used]), np.log([m.loss.value for m in used])
        at = math.log(flops)
        ends = [(m.loss.low, m.loss.high) for m in used]
        if all(low and high for low, high in ends):
            sd = np.array([(math.log(high) - math.log(low)) / 3.92 for low, high in ends if low and high])
            draws = sd * np.random.default_rng(0).standard_normal((RESAMPLES, len(x)))
            intercept, slope = line(x, draws)
            low, high = np.quantile(intercept + slope * at, [0.025, 0.975])
            return Estimate(1.0, math.exp(low), math.exp(high))
        if len(x) < 3:
            return Estimate(1.0)
        intercept, slope = line(x, y)
        variance = float(((y - intercept - slope * x) ** 2).sum()) / (len(x) - 2)
        reach = 1 / len(x) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
        return student(0.0, math.sqrt(variance * reach), len(x) - 2).exp()


def surface(family: str, fitted: FamilyFit) -> LossSurface:
    """Of one family of a study. `UserError` where the study has no law of its best loss."""
    optima = fitted.laws
    if not (optima.loss and optima.params and optima.tokens):
        raise UserError(f"family '{family}' has no law of its best loss: its runs need two budgets, or more sizes")
    used = [m for m in optima.minima if TOO_FEW not in m.flags or m.given]
    cost = math.exp(float(np.mean([math.log(m.flops / (m.params.value * m.tokens.value)) for m in used])))
    own = fitted.parametric
    law = own.law if own.law is not None and not own.flags else _derived(optima)
    span = (min(m.flops for m in used), max(m.flops for m in used))
    return LossSurface(family, fitted.loss_kind, law, law is own.law, cost, span, fitted.sizes, fitted.trained, optima)


def _derived(optima: IsoFlop) -> Law:
    assert optima.params and optima.loss and optima.tokens
    a, b, g = optima.params.exponent.value, optima.tokens.exponent.value, -optima.loss.exponent.value
    a, b = a / (a + b), b / (a + b)
    if not (0 < a < 1 and g > 0):
        raise UserError(
            "the best size or loss of a family does not move with compute as a law would: no recommendation"
        )
    alpha, beta = g / a, g / b
    middle = math.exp(float(np.mean([math.log(m.flops) for m in optima.minima])))
    params, tokens, loss = (float(law.at(middle)) for law in (optima.params, optima.tokens, optima.loss))
    share = beta / (alpha + beta)
    return Law(0.0, loss * share * params**alpha, loss * (1 - share) * tokens**beta, alpha, beta)
