"""What precedes a text of a causal model: an id, where its tokenizer puts one, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.files import read_json
from redraft.hub.convert.layouts.facts import Facts
from redraft.hub.convert.layouts.plan import Choices
from redraft.hub.convert.layouts.vocabulary import TokenizerInfo
from redraft.hub.convert.source import Source


def beginning(
    source: Source, rows: int, facts: Facts, choices: Choices, speaker: TokenizerInfo, notes: list[str]
) -> int | str:
    """AR's option `bos`: as was chosen, else as the tokenizer beside the weights does it."""
    if choices.bos is not None:
        if choices.bos >= rows:
            raise UserError(f"--bos {choices.bos} is no id of the checkpoint, which has {rows}")
        return "none" if choices.bos < 0 else choices.bos
    found, why = _told(source.folder, facts)
    if found is not None and 0 <= found < rows:
        notes.append(f"texts begin with id {found}, {why} (else give --bos ID or none)")
        return found
    notes.append(f"nothing precedes a text, {why}: first tokens are given, not scored (else give --bos ID)")
    return "none"


def _told(folder: Path, facts: Facts) -> tuple[int | None, str]:
    bos = facts.number("bos_token_id")
    settings = _table(folder / "tokenizer_config.json")
    if isinstance(adds := facts.table.get("add_bos_token", settings.get("add_bos_token")), bool):
        return bos if adds else None, "as the tokenizer's settings say"
    if (folder / "tokenizer.json").is_file():
        return _template(_table(folder / "tokenizer.json")), "as the tokenizer.json does"
    if (folder / "tokenizer.model").is_file():
        return bos, "as Llama's tokenizers do"
    return None, "for no tokenizer tells of one"


def _template(definition: dict[str, Any]) -> int | None:
    """The id of the special token that a post-processor puts before a text."""
    for step in [definition.get("post_processor"), *((definition.get("post_processor") or {}).get("processors") or [])]:
        single = (step or {}).get("single") or []
        if single and isinstance(first := single[0].get("SpecialToken"), dict):
            ids = ((step or {}).get("special_tokens") or {}).get(first.get("id"), {}).get("ids") or [None]
            return ids[0] if type(ids[0]) is int else None
    return None


def _table(path: Path) -> dict[str, Any]:
    table = read_json(path) if path.is_file() else {}
    return table if isinstance(table, dict) else {}
