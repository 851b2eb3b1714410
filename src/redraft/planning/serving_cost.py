"""Cost of generation by family, in FLOPs and seconds, and what few calls lose. No torch.

A pass over one token costs a third of what training spends on it. How many calls write a text, and how many tokens each of
them reads, a family says in the registry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from redraft.errors import UserError, unknown
from redraft.registry import FAMILIES

BYTES = 2.0  # of a weight as it is served: bfloat16
USEFUL = 0.4  # model FLOPs utilization (MFU) of large products: a guess, to be replaced by --rate


@dataclass(frozen=True)
class Hardware:
    """What one device multiplies (FLOP/s, dense bfloat16, as its data sheet says) and reads (bytes/s)."""

    name: str
    peak: float
    bandwidth: float

    @property
    def rate(self) -> float:
        return USEFUL * self.peak


HARDWARE = {
    h.name: h
    for h in (Hardware("a100", 312e12, 2.039e12), Hardware("h100", 989e12, 3.35e12), Hardware("h200", 989e12, 4.8e12))
}


def hardware(name: str, rate: float | None = None) -> Hardware:
    """By name; `rate`, useful FLOP/s, stands in for the data sheet's share."""
    if name not in HARDWARE:
        raise unknown("hardware", name, HARDWARE)
    if rate is not None and not 0 < rate < math.inf:
        raise UserError(f"--rate must be a positive number of FLOP/s, got {rate}")
    known = HARDWARE[name]
    return known if rate is None else Hardware(name, rate / USEFUL, known.bandwidth)


@dataclass(frozen=True)
class Writing:
    """How a family writes a text of `length` tokens: so many calls in a row, each over so many tokens."""

    calls: int
    tokens_per_call: float

    def flops(self, flops_per_token: float) -> float:
        """FLOPs of a whole text, where one pass over one token costs `flops_per_token`."""
        return self.calls * self.tokens_per_call * flops_per_token

    def largest(self, seconds: float, flops_per_token: float, device: Hardware) -> float:
        """Parameters of the largest model that writes a text in so many seconds; `flops_per_token` of one parameter."""
        call = seconds / self.calls
        return min(call * device.rate / (self.tokens_per_call * flops_per_token), call * device.bandwidth / BYTES)

    def seconds(self, params: float, flops_per_token: float, device: Hardware) -> float:
        """One text alone on one device: every call reads all weights and multiplies, whichever takes longer."""
        call = max(self.tokens_per_call * flops_per_token / device.rate, BYTES * params / device.bandwidth)
        return self.calls * call


def writing(family: str, kind: str | None, length: int, steps: int) -> Writing:
    """How a family writes, as the registry says. Others, of imported tables, by diffusion if their losses are bounds, else
    left to right."""
    stem = family.partition("-")[0]
    if stem in FAMILIES:
        return Writing(*FAMILIES[stem].writing(length, steps))
    return Writing(steps, float(length)) if kind == "bound" else Writing(length, 1.0)


Curve = Sequence[tuple[float, float]]  # calls for each token, nats per token under the judge


@dataclass(frozen=True)
class Calls:
    """What samples lose by few calls, as a study's frontier measured it, and how, in words.

    A family in s calls for a text of L tokens makes s / L calls for each token; that is what carries over to another length.
    The loss of quality is counted within the family: nats per token under the judge, at one entropy, above the best that its
    measured calls give. Between two measured numbers of calls it is interpolated in their logarithm; with more calls than
    were measured it is that of the most; with fewer it is not known.
    """

    curves: Mapping[str, Curve]
    source: str

    def lost(self, family: str, per_token: float) -> float | None:
        """Nats per token that samples lose; None where nobody measured it."""
        curve = sorted(self.curves.get(family, ()))
        if not curve or per_token < curve[0][0] * (1 - 1e-9):
            return None
        best = min(quality for _, quality in curve)
        if per_token >= curve[-1][0]:
            return curve[-1][1] - best
        for (less, poor), (more, good) in pairwise(curve):
            if less * (1 - 1e-9) <= per_token <= more:
                share = math.log(per_token / less) / math.log(more / less)
                return poor + share * (good - poor) - best
        return None
