"""Model sizes for a budget: a window of a size ladder around the expected optimum. No torch.

Approach 2 is biased where the sizes lie to one side of the minimum (Czech et al. 2026, arXiv:2603.22339), so the window
moves with the budget along N* = params (C / flops)^exponent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, linear_regression

from pydantic import Field, model_validator

from redraft.config_network import Part
from redraft.errors import UserError
from redraft.network.sizes import LADDER, weights_of
from redraft.numbers import Amount


class CentreConfig(Part):
    """The law of the best size that is expected: N* = params (C / flops)^exponent."""

    flops: Amount = Field(description="a budget")
    params: Amount = Field(description="the best size there, without the input embedding")
    exponent: float = Field(0.5, gt=0, lt=1, description="with which it grows with the budget")

    def at(self, flops: float) -> float:
        return self.params * (flops / self.flops) ** self.exponent


def published_centre(family: str) -> CentreConfig:
    """The law of arXiv:2602.15014 for a family, by least squares through its published optima; MDLM's for other diffusion.

    Its budgets are 6e18 to 1e20 FLOPs: far from them it is a guess, and the fit's warnings say whether it was a good one.
    """
    from redraft.scaling.records import load_points

    points = load_points("published:scaling-beyond")
    own = [p for p in points if p.family == family] or [p for p in points if p.family == "mdlm"]
    x, y = ([math.log(value) for value in values] for values in zip(*((p.flops, p.params) for p in own)))
    fit = linear_regression(x, y)
    middle = fmean(x)
    centre = math.exp(fit.intercept + fit.slope * middle)
    return CentreConfig(flops=math.exp(middle), params=centre, exponent=fit.slope)


class GridConfig(Part):
    """`sizes` neighbours of a ladder at each budget. The ladder: names, or all of the papers' between two sizes, or solved
    ones between two sizes, each `ratio` times the last."""

    sizes: int = Field(5, gt=2, le=1000, description="sizes a budget; three are the fewest that show a minimum")
    ladder: list[str] = Field(default_factory=list, description="the sizes to choose from, by name")
    between: tuple[str, str] | None = Field(None, description="or the smallest and the largest of them")
    ratio: float = Field(0.0, ge=0, le=1e6, description="0: the papers' sizes")
    centre: CentreConfig | None = Field(None, description="where the best size is expected; a paper's law if left out")

    @model_validator(mode="after")
    def _one(self) -> GridConfig:
        if bool(self.ladder) == bool(self.between):
            raise UserError("grid: give either ladder = [names] or between = [smallest, largest]")
        if self.ratio and self.ratio <= 1:
            raise UserError(f"grid.ratio is {self.ratio:g}: sizes must grow, about 1.4 to 2 a step")
        return self

    def names(self) -> list[str]:
        """The ladder, ascending as it is written."""
        if self.between is None:
            return self.ladder
        low, high = (weights_of(name) for name in self.between)
        if not self.ratio:
            return [name for name in LADDER if low <= weights_of(name) <= high]
        count = round(math.log(high / low) / math.log(self.ratio)) + 1
        return [_name(low * (high / low) ** (i / max(1, count - 1))) for i in range(count)]


def windows(
    grid: GridConfig, budgets: Sequence[float], params: Callable[[str], int], law: CentreConfig
) -> Mapping[str, list[float]]:
    """The budgets of each size, both ascending, sizes without any left out. `params`: of a ladder name.

    At each budget the window whose mean log size is nearest to that of the law. `UserError` for a ladder that is too short.
    """
    ladder = sorted(grid.names(), key=params)
    if len(ladder) < grid.sizes:
        raise UserError(
            f"grid: {grid.sizes} sizes a budget need a ladder as long; it has {len(ladder)}: {', '.join(ladder)}"
        )
    logs = [math.log(params(name)) for name in ladder]
    out: dict[str, list[float]] = {name: [] for name in ladder}
    for flops in sorted(budgets):
        expected = math.log(law.at(flops))
        off = {i: abs(fmean(logs[i : i + grid.sizes]) - expected) for i in range(len(ladder) - grid.sizes + 1)}
        first = min(off, key=off.__getitem__)
        for name in ladder[first : first + grid.sizes]:
            out[name].append(flops)
    return {name: own for name, own in out.items() if own}


def _name(weights: float) -> str:
    """The inverse of `weights_of`, to three digits."""
    unit, size = next((u, s) for u, s in (("B", 1e9), ("M", 1e6), ("k", 1e3)) if weights >= s or u == "k")
    return f"{weights / size:.3g}{unit}"
