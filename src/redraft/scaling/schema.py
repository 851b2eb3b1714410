"""The JSON schema of `redraft study fit --json`, which is kept stable.

families.NAME.size_exponent, token_exponent, loss_exponent: {value, low, high}, the exponents of compute C (FLOPs) in
N* = k C^a, D* = k C^b and loss* = k C^g; losses fall, so g is negative. families.NAME.minima: one for each budget, plain
numbers under flops, params, tokens, loss (nats per token), and `bracketed`. families.NAME.parametric: E, A, B, alpha,
beta of L(N, D) = E + A / N^alpha + B / D^beta. families.NAME.engines: the exponents of every engine. families.NAME.
robustness: intervals of L(N, D) by profile likelihood and by drawing runs. families.NAME.influence: L(N, D) without each
run (`runs`), without each budget (`budgets`) and without the group of runs that moves each parameter furthest (`groups`);
`moved`: the parameters that leave their intervals. families.NAME.held_out: each engine's error on the largest budget.
multipliers.NAME: k over compute (`points`) and over loss (`by_loss`) against `reference`.
convention: how N and C were counted; conventions: the same under each other convention. joint: L(N, D) of all families
with shared terms. Intervals are 95 %; null stands where nothing is known. The other keys of a family repeat the
dataclasses of `redraft.scaling.results`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from redraft.scaling.caveats import family_caveats
from redraft.scaling.laws.isoflop import IsoFlop, Minimum
from redraft.scaling.laws.multiplier import LEVEL, Estimate, Multiplier, PowerLaw
from redraft.scaling.results import FamilyFit, Fits

_PARAMETERS = ("E", "A", "B", "alpha", "beta", "allocation")


def to_json(fits: Fits) -> dict[str, Any]:
    """Strict JSON: nested dicts and lists; what is not finite is null."""
    told = plain(fits)
    for name, family in fits.families.items():
        told["families"][name] |= _family(family, told["families"][name])
    ratios = {name: family.multiplier for name, family in fits.families.items() if family.multiplier}
    multipliers = {
        name: _multiplier(k) | {"looseness": plain(fits.families[name].looseness)} for name, k in ratios.items()
    }
    return {"level": LEVEL, **told, "multipliers": multipliers}


def plain(value: Any) -> Any:
    """Dataclasses as dicts, without the fields kept from `repr`, which are working data."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value) if field.repr}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _family(family: FamilyFit, told: dict[str, Any]) -> dict[str, Any]:
    laws, projected = family.laws, family.parametric.projected
    return {
        "method": laws.method,
        **_exponents(laws),
        "minima": [_minimum(m) for m in laws.minima],
        "parametric": told["parametric"] | {name: _ends(getattr(family.parametric, name)) for name in _PARAMETERS},
        "engines": {
            "envelope": _exponents(family.envelope),
            "parabolas": _exponents(family.parabolas),
            "parametric": {"size_exponent": _ends(family.parametric.allocation)},
            "projection": {"size_exponent": {"value": projected.allocation if projected else None}},
        },
        "warnings": family_caveats(family),
    }


def _exponents(laws: IsoFlop) -> dict[str, Any]:
    named: dict[str, PowerLaw | None] = {
        "size_exponent": laws.params,
        "token_exponent": laws.tokens,
        "loss_exponent": laws.loss,
    }
    return {name: _ends(law.exponent if law else None) for name, law in named.items()}


def _ends(estimate: Estimate | None) -> dict[str, Any]:
    return dict.fromkeys(("value", "low", "high")) if estimate is None else plain(estimate)


def _minimum(m: Minimum) -> dict[str, Any]:
    row: dict[str, Any] = {"flops": m.flops, "budget": m.budget, "bracketed": m.is_vertex, "given": m.given}
    for name in ("params", "tokens", "loss"):
        ends = plain(getattr(m, name))
        row |= {name: ends["value"], f"{name}_low": ends["low"], f"{name}_high": ends["high"]}
    return row | {"sizes": m.sizes, "flags": list(m.flags)}


def _multiplier(k: Multiplier) -> dict[str, Any]:
    points = [{"flops": r.flops, **plain(r.multiplier), "extrapolated": r.extrapolated} for r in k.ratios]
    by_loss = [
        {"loss": r.loss, "flops": r.flops, **plain(r.multiplier), "extrapolated": r.extrapolated} for r in k.by_loss
    ]
    return {
        "reference": k.reference,
        "points": points,
        "mean": plain(k.mean),
        "trend": plain(k.trend),
        "by_loss": plain(by_loss),
    }
