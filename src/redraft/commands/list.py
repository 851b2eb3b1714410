"""Families, samplers, sizes, recipes, and every key of a run and of a study. Loads no torch.

redraft list [families|samplers|sizes|recipes|presets|keys]
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from pydantic import BaseModel

from redraft.commands.plan import recipes
from redraft.config import FamilyConfig, RunConfig, table_of
from redraft.display import emit
from redraft.errors import unknown
from redraft.network.sizes import LADDER, from_size
from redraft.planning.presets import PRESETS
from redraft.planning.study import StudyConfig
from redraft.registry import FAMILIES, SAMPLERS, add_installed

KINDS = ("families", "samplers", "sizes", "recipes", "presets", "keys")


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", help=" or ".join(KINDS))
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    if options.kind and options.kind not in KINDS:
        raise unknown("list", options.kind, KINDS)
    listed = {kind: _rows(kind) for kind in KINDS if options.kind in (None, kind)}
    if options.kind == "keys":
        listed["keys of a study"] = _keys(StudyConfig, "")
    if options.json:
        return emit(listed)
    for kind, rows in listed.items():
        if kind == "keys" and options.kind is None:
            continue
        print(f"{kind}:")
        width = max(len(name) for name in rows)
        print("\n".join(f"  {name:<{width}}  {_text(row)}" for name, row in rows.items()))
    return None


def _rows(kind: str) -> dict[str, Any]:
    if kind in ("families", "samplers"):
        add_installed()
        entries = FAMILIES if kind == "families" else SAMPLERS
        return {n: {"summary": e.summary, "options": dict(e.options)} for n, e in entries.items()}
    if kind == "sizes":
        return {name: _size(name) for name in LADDER}
    if kind == "recipes":
        return {name: {"summary": path.read_text().splitlines()[0].lstrip("# ")} for name, path in recipes().items()}
    if kind == "presets":
        return {name: {"summary": preset.summary} for name, preset in PRESETS.items()}
    return _keys(RunConfig, "")


def _size(name: str) -> dict[str, Any]:
    depth, heads, width = LADDER[name]
    return {
        "summary": f"{depth} layers, {heads} heads, width {width}",
        "depth": depth, "heads": heads, "width": width,
        "options": {f"{b} block weights": from_size(name, b, 32000).block_weights for b in ("dit", "llama")},
    }  # fmt: skip


def _keys(model: type[BaseModel], prefix: str) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        part = table_of(field.annotation)
        if part is not None and not (part is FamilyConfig and prefix):  # those of an arm go by their names
            rows |= _keys(part, f"{prefix}{name}.")
        else:
            rows[prefix + name] = {"summary": field.description or "", "options": {"default": _plain(field.default)}}
    return rows


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else None


def _text(row: dict[str, Any]) -> str:
    options = ", ".join(f"{key} {value}" for key, value in row.get("options", {}).items() if value is not None)
    return f"{row['summary']}{f'  ({options})' if options else ''}"
