"""The ELBO gap: the part of a compute multiplier that is due to a loose bound.

Diffusion families are scored by a bound on the likelihood, the reference exactly: their multiplier contains both the
likelihood gap and the bound's gap. (With its exact likelihood on LM1B the perplexity of MDLM falls from 31.8 to 26.8, AR has
22.8; arXiv:2506.01928.) Where runs carry the exact likelihood (`loss_exact`) or a tighter bound (`loss_tight`) beside the
loss, everything is fitted again with it: k with the bound = k with the tighter loss x the factor of the looseness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from redraft.scaling.laws.multiplier import Best, Estimate, Multiplier, interval, log_multiplier, multiplier
from redraft.scaling.records import Point


@dataclass(frozen=True)
class Factor:
    """Multiplier with the bound over multiplier with the tighter loss, at one budget."""

    flops: float
    factor: Estimate


@dataclass(frozen=True)
class ElboGap:
    """A family's multiplier with a tighter loss, and what the bound adds to it."""

    tighter: str  # 'exact' or 'tight': which loss took the place of the bound
    multiplier: Multiplier
    factors: tuple[Factor, ...]
    mean: Estimate  # geometric, over budgets with both losses among the reference's; over all where there are none


def tightened(points: Sequence[Point]) -> tuple[str, list[Point]] | None:
    """The runs of a family with a tighter loss in place of the bound: the exact one if all have it, else the bound."""
    for kind in ("exact", "tight"):
        loss, se = f"loss_{kind}", f"loss_{kind}_se"
        if all(getattr(p, loss) is not None for p in points):
            swap = [{"loss": getattr(p, loss), "loss_se": getattr(p, se), "loss_kind": kind} for p in points]
            return kind, [replace(p, **fields) for p, fields in zip(points, swap)]
    return None


def looseness(kind: str, bound: Best, tight: Best, reference: Best, tight_reference: Best, name: str) -> ElboGap | None:
    """Compare the multipliers of the same runs with two losses; None where either has none.

    Resamples of both are drawn from the same seed, so that the noise of a run, common to both, cancels in the factor.
    """
    again = multiplier(tight, tight_reference, name)
    loose, firm = log_multiplier(bound, reference), log_multiplier(tight, tight_reference)
    if again is None or loose is None or firm is None or len(loose.value) != len(firm.value):
        return None
    both = loose.draws is not None and firm.draws is not None and loose.draws.shape == firm.draws.shape
    draws = loose.draws - firm.draws if both and loose.draws is not None and firm.draws is not None else None
    value = loose.value - firm.value
    factors = [interval(float(v), None if draws is None else draws[:, i]).exp() for i, v in enumerate(value)]
    measured = loose.inside & firm.inside if (loose.inside & firm.inside).any() else np.ones(len(value), bool)
    mean = interval(float(value[measured].mean()), None if draws is None else draws[:, measured].mean(-1)).exp()
    return ElboGap(kind, again, tuple(map(Factor, bound.flops.tolist(), factors)), mean)
