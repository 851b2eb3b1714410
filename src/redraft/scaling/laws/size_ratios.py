"""How a family's best size compares with the reference's at the same compute.

The geometric mean of N*_family / N*_reference over the budgets at which both minima lie between sizes. Its interval is made
from theirs, whose errors are taken as independent: the lower end is as far from the mean as the root of the summed squares of
the family's way down and the reference's way up, in ln N, over the number of budgets (MOVER: Zou and Donner 2008, Statistics
in Medicine 27, 1693). The upper end likewise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redraft.scaling.laws.isoflop import Minimum
from redraft.scaling.laws.multiplier import Estimate
from redraft.scaling.power import could_have_seen


@dataclass(frozen=True)
class SizeRatio:
    """Best size over the reference's; `budgets`: nominal FLOPs that the mean is over. `detectable`: the factor away from 1
    that would have been seen at 80 % power, where 1 is within the interval."""

    family: str
    ratio: Estimate
    budgets: tuple[float, ...]
    detectable: float | None


def size_ratios(minima: Mapping[str, Sequence[Minimum]], reference_name: str) -> list[SizeRatio]:
    """One for each family that shares such a budget with the reference; `minima` by family."""
    known = {name: _between(own) for name, own in minima.items()}
    reference = known.pop(reference_name, {})
    shared = {name: sorted(own.keys() & reference.keys()) for name, own in known.items()}
    return [_ratio(name, known[name], reference, budgets) for name, budgets in shared.items() if budgets]


def _between(minima: Sequence[Minimum]) -> dict[float, Estimate]:
    return {m.budget: m.params for m in minima if m.is_vertex and m.params.low and m.params.high}


def _ratio(
    name: str, own: dict[float, Estimate], reference: dict[float, Estimate], budgets: Sequence[float]
) -> SizeRatio:
    logs = [(_logs(own[budget]), _logs(reference[budget])) for budget in budgets]
    value = sum(a[0] - b[0] for a, b in logs) / len(logs)
    down = math.sqrt(sum((a[0] - a[1]) ** 2 + (b[2] - b[0]) ** 2 for a, b in logs)) / len(logs)
    up = math.sqrt(sum((a[2] - a[0]) ** 2 + (b[0] - b[1]) ** 2 for a, b in logs)) / len(logs)
    found = Estimate(value, value - down, value + up)
    seen = could_have_seen(found) if value - down < 0 < value + up else None
    return SizeRatio(name, found.exp(), tuple(budgets), None if seen is None else math.exp(seen))


def _logs(size: Estimate) -> tuple[float, float, float]:
    assert size.low is not None and size.high is not None
    return math.log(size.value), math.log(size.low), math.log(size.high)
