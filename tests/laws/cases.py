"""What the laws are held against: every registered family on the enumerable world, and one that is not registered."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.families.base import DiffusionFamily, Family, build
from redraft.registry import FAMILIES
from tests.hybrid import MASK_HEAVY, HybridFamily
from tests.laws.oracles import ORACLES, VARIANTS
from tests.world import Hybrid, Oracle, V


@dataclass(frozen=True)
class Case:
    """A family and the oracle that knows what its network should predict."""

    name: str
    family: Family
    oracle: Oracle

    def __repr__(self) -> str:
        return self.name


def registered() -> list[Case]:
    """Every family in the registry: a newcomer without an oracle fails here, by name."""
    cases = []
    for name in FAMILIES:
        for options in VARIANTS.get(name, [{}]):
            label = "-".join([name, *(f"{k}={v}" for k, v in options.items())])
            family = build(name, options, V)
            cases.append(Case(label, family, ORACLES[name](family)))
    return cases


CASES = registered()
HYBRID = Case("hybrid", HybridFamily(V, MASK_HEAVY), Hybrid(torch.tensor(MASK_HEAVY, dtype=torch.float64)))
WITH_CLOCK = [case for case in [*CASES, HYBRID] if isinstance(case.family, DiffusionFamily)]
