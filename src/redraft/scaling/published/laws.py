"""Published scaling laws of which the coefficients are known and the optima are not: told as published, never fitted again.

They are JSON files beside the tables, with their sources in SOURCES.md. `redraft study fit published:NAME` shows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.display import quantity
from redraft.scaling.published import LAWS, PREFIX

EXPONENTS = ("size_exponent", "token_exponent", "loss_exponent")
EMPTY = dict.fromkeys(("value", "low", "high"))


@dataclass(frozen=True)
class PublishedLaw:
    """`families`: by the paper's names, exponents of compute C (FLOPs, counted as `convention` says) with 95 % intervals where
    they are given, coefficients where they are known, and L(N, D) where there is one. `budgets`: the least and the most."""

    title: str
    arxiv: str
    convention: str
    loss_kind: str
    budgets: tuple[float, float]
    method: str
    notes: tuple[str, ...]
    families: Mapping[str, Mapping[str, Any]]

    def at(self, family: str, flops: float) -> dict[str, float] | None:
        """The formulas at a budget: parameters, tokens, and the loss of L(N, D) there (nats per token) if it is known. None
        where a coefficient is not."""
        law = self.families[family]
        if "size_coefficient" not in law:
            return None
        size, tokens = (
            law[f"{name}_coefficient"] * flops ** law[f"{name}_exponent"]["value"] for name in ("size", "token")
        )
        found = {"flops": flops, "params": size, "tokens": tokens}
        if p := law.get("parametric"):
            found["loss"] = p["E"] + p["A"] / size ** p["alpha"] + p["B"] / tokens ** p["beta"]
        return found


def published_law(name: str) -> PublishedLaw | None:
    """The law that 'published:NAME' names; None for any other text, a published table's too."""
    if name.removeprefix(PREFIX) not in LAWS or not name.startswith(PREFIX):
        return None
    file = Path(__file__).parent / f"{name.removeprefix(PREFIX)}.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    return PublishedLaw(**{**table, "budgets": tuple(table["budgets"]), "notes": tuple(table["notes"])})


def law_json(law: PublishedLaw) -> dict[str, Any]:
    """The keys of `redraft study fit --json` (scaling/schema.py) that a law has, and where it is from."""
    families = {
        name: {
            "method": law.method,
            **{key: EMPTY | found.get(key, {}) for key in EXPONENTS},
            "parametric": found.get("parametric"),
            "coefficients": {"params": found.get("size_coefficient"), "tokens": found.get("token_coefficient")},
            "formula_at": [point for flops in law.budgets if (point := law.at(name, flops))],
        }
        for name, found in law.families.items()
    }
    source = {"title": law.title, "arxiv": law.arxiv, "notes": list(law.notes)}
    return {"fitted": False, "published": source, "convention": law.convention, "families": families}


def law_lines(law: PublishedLaw) -> list[str]:
    """The law in sentences."""
    low, high = law.budgets
    return [
        f"{law.title}, arXiv:{law.arxiv}: as published, from {low:.3g} to {high:.3g} FLOPs; nothing is fitted.",
        f"C is {law.convention}. {law.method[0].upper()}{law.method[1:]}.",
        *(line for name in law.families for line in _family_lines(law, name)),
        *law.notes,
    ]


def _family_lines(law: PublishedLaw, name: str) -> list[str]:
    found = law.families[name]
    powers = [f"{what}* ~ C^{_told(found[key])}" for what, key in zip("NDL", EXPONENTS, strict=True) if key in found]
    lines = [f"{name}: {', '.join(powers)}"]
    if p := found.get("parametric"):
        lines += [f"{name}: L(N, D) = {p['E']} + {p['A']} / N^{p['alpha']} + {p['B']} / D^{p['beta']} nats per token"]
    for flops in law.budgets:
        if point := law.at(name, flops):
            loss = f", {point['loss']:.3f} nats per token" if "loss" in point else ""
            size, tokens = quantity(point["params"]), quantity(point["tokens"])
            lines += [f"{name}: the formulas at {flops:.3g} FLOPs: {size} parameters, {tokens} tokens{loss}"]
    return lines


def _told(estimate: Mapping[str, float]) -> str:
    interval = f" [{estimate['low']:g}, {estimate['high']:g}]" if "low" in estimate else ""
    return f"{estimate['value']:g}{interval}"
