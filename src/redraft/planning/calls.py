"""What samples lose by few calls of the network, as a study's frontier measured it. No torch.

A family in s calls for a text of L tokens makes s / L calls for each token; that is what carries over to another length.
The loss of quality is counted within the family: nats per token under the judge, at one entropy, above the best that its
measured calls give. Between two measured numbers of calls it is interpolated in their logarithm; with more calls than
were measured it is that of the most; with fewer it is not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Curve = Sequence[tuple[float, float]]  # calls for each token, nats per token under the judge


@dataclass(frozen=True)
class Calls:
    """Quality by calls of each family that was measured, and how, in words."""

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
