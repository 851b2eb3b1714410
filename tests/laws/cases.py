"""What the laws are held against: every registered family on the enumerable world, and one that is not registered."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.families.base import DiffusionFamily, Family, build
from redraft.registry import FAMILIES, SAMPLERS
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
# What is crossed with the samplers: one of each family with every part that a sampler can meet, and a schedule that bends
# where samplers invert it. The other options of a family are held against the sampler that it has by itself.
WHOLE = {
    "mdlm": ("mdlm", "mdlm-schedule=cosine"),
    "sedd": ("sedd", "sedd-schedule=cosine"),
    "esolm": ("esolm-alpha_0=0.3-variant=B", "esolm-alpha_0=0.3-variant=A"),
    "bd3lm": ("bd3lm-block=2",),
}
HYBRID = Case("hybrid", HybridFamily(V, MASK_HEAVY), Hybrid(torch.tensor(MASK_HEAVY, dtype=torch.float64)))
LEARNT = ("mdlm-objective=nelbo", "gidd-uniform=0.2-weights=nelbo")  # otherwise, and sampled alike


def fitting() -> list[tuple[Case, str]]:
    """Every registered sampler with every family that it fits, and the other options of a family with its own sampler."""
    out = []
    for case in (case for case in CASES if case.name not in LEARNT):
        crossed = case.name in WHOLE.get(case.family.name, (case.family.name,))
        for name in SAMPLERS if crossed else [case.family.sampler]:
            if SAMPLERS[name].load()().refusal(case.family) is None:
                out.append((case, name))
    return out


WITH_CLOCK = [case for case in [*CASES, HYBRID] if isinstance(case.family, DiffusionFamily)]
