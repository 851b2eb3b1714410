"""The fits of a study as data: one `Fits`, a `FamilyFit` for each family, a `Pair` for each two arms; and their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redraft.scaling.conventions import Recounted
from redraft.scaling.extrapolation import HeldOut
from redraft.scaling.laws.data_constrained import DataConstrained
from redraft.scaling.laws.elbo_gap import ElboGap
from redraft.scaling.laws.influence import Influence
from redraft.scaling.laws.isoflop import IsoFlop
from redraft.scaling.laws.joint import Joint
from redraft.scaling.laws.multiplier import Estimate, Multiplier
from redraft.scaling.laws.parametric import Parametric
from redraft.scaling.laws.robustness import Robustness

REFERENCE = "ar"
LABELS = {"ar": "AR", "mdlm": "MDLM", "duo": "Duo", "esolm": "Eso-LM", "smdm": "SMDM"}
LABELS |= {"bd3lm": "BD3-LM", "gidd": "GIDD", "xdlm": "XDLM", "sedd": "SEDD", "d3pm": "D3PM"}


@dataclass(frozen=True)
class FamilyFit:
    """Everything fitted to the runs of one family (or arm)."""

    runs: int
    loss_kind: str | None  # 'exact' or 'bound'
    isoflop: IsoFlop
    parametric: Parametric
    multiplier: Multiplier | None  # None for the reference, and where there is nothing to compare
    parabolas: IsoFlop  # approach 2 as published, no bias subtracted
    envelope: IsoFlop  # approach 1
    held_out: tuple[HeldOut, ...]  # each engine on the largest budget
    looseness: ElboGap | None  # of the bound, where a tighter loss stands beside it
    robustness: Robustness | None  # other intervals of L(N, D)
    repeats: DataConstrained | None  # where data were repeated
    sizes: tuple[float, float]  # the fewest and the most parameters of a run
    trained: tuple[float, float]  # and tokens
    influence: Influence | None  # of runs and budgets on L(N, D)

    @property
    def laws(self) -> IsoFlop:
        """The minima and power laws that speak for the family: `isoflop`, or the envelope where that has no law."""
        return self.isoflop if self.isoflop.loss or not self.envelope.loss else self.envelope


@dataclass(frozen=True)
class Factor:
    """Of compute, by paired seeds."""

    value: Estimate
    extrapolated: bool  # beyond the budgets of the way it is compared with


@dataclass(frozen=True)
class Pair:
    """One family trained in two ways at one size and budget, with the same seeds."""

    arm: str
    against: str
    budget: float  # nominal FLOPs
    params: float
    seeds: tuple[int, ...]
    losses: tuple[float, ...]  # of `arm`, nats per token, by seed
    losses_against: tuple[float, ...]
    difference: Estimate  # mean of arm - against, nats per token; Student's t over seeds
    factor: Factor | None = None  # times the compute of `against` that `arm` needs for its loss, at this size


@dataclass(frozen=True)
class Fits:
    """The fits of a study; as strict JSON: `redraft.scaling.schema.to_json`."""

    reference: str
    seed: int
    resamples: int
    convention: str | None
    families: Mapping[str, FamilyFit]
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]  # sentences
    conventions: tuple[Recounted, ...] = ()  # the same runs under every convention they are counted under
    joint: Joint | None = None  # L(N, D) of all families with shared terms


def ordered(families: Sequence[str], reference: str = REFERENCE) -> list[str]:
    """The reference first, then the families of this package, then the others by name."""
    rank = {reference: -1} | {name: i for i, name in enumerate(LABELS) if name != reference}
    return sorted(families, key=lambda name: (rank.get(name, len(rank)), name))


def label(family: str) -> str:
    """How a family is written: 'Eso-LM' for esolm, 'MDLM-nelbo' for its arm mdlm-nelbo, else as it is."""
    stem, dash, rest = family.partition("-")
    return LABELS.get(stem, stem) + dash + rest


def span(estimate: Estimate, digits: int = 3) -> str:
    """A value with its 95 % interval: '0.541 (0.5 to 0.58)'."""
    value, low, high = (
        None if number is None else f"{number:#.{digits}g}".rstrip(".")
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value}" if low is None or high is None else f"{value} ({low} to {high})"
