"""Rotary base and scaling in the configurations of `transformers`, under their names of before and since version 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.errors import UserError
from redraft.hub.convert.layouts.facts import Facts
from redraft.hub.convert.source import Source
from redraft.network.sizes import SCALINGS, Scaling

# Our name: theirs.
FIELDS = {
    "factor": "factor", "original": "original_max_position_embeddings", "low": "low_freq_factor", "high": "high_freq_factor",
    "fast": "beta_fast", "slow": "beta_slow", "attention": "attention_factor",
}  # fmt: skip


def theta_of(facts: Facts) -> float:
    return facts.real("rope_parameters.rope_theta", "rope_theta") or 10000.0


def table_of(facts: Facts) -> Mapping[str, Any]:
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(table := facts.table.get(name), Mapping):
            return table
    return {}


def scaling_of(source: Source, facts: Facts) -> Scaling | None:
    """`UserError` for a kind that is not known, naming it."""
    table = table_of(facts)
    kind = table.get("rope_type", table.get("type", "default"))
    if kind == "default":
        return None
    if kind not in SCALINGS:
        raise UserError(
            f"{source.path} scales rotary angles by {str(kind)[:40]!r}, which is not known: {', '.join(SCALINGS)} are"
        )
    if table.get("truncate") is False or table.get("mscale") or table.get("mscale_all_dim"):
        raise UserError(f"{source.path} scales rotary angles with truncate or mscale, which are not known here")
    said = {ours: table[theirs] for ours, theirs in FIELDS.items() if table.get(theirs) is not None}
    if not all(type(value) in (int, float) for value in said.values()):
        raise UserError(f"{source.path} scales rotary angles by numbers that are none: {said}")
    said.setdefault("original", facts.number("max_position_embeddings") or 0)
    if kind == "linear":
        said = {"factor": said.get("factor", 1.0)}
    return Scaling(kind, **{"factor": 1.0, **said})
