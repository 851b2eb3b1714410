"""config.json of a model folder, and how a name is resolved to a folder or to the hub. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.files import read_json, whereabouts
from redraft.hub.remote import fetch, is_hub_name
from redraft.network.sizes import Shape

CONFIG = "config.json"


@dataclass(frozen=True)
class ModelConfig:
    """What it takes to rebuild a model around its weights. `length`: tokens in a row when it was trained."""

    family: str
    options: dict[str, Any]
    shape: Shape
    length: int
    tokenizer: str  # fingerprint
    record: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"model_type": "redraft", "version": 1, **asdict(self)}


def located(spec: str | Path) -> Path:
    """The folder of a model: one that is here, or that of `owner/name` on the hub. `UserError` says what was looked for."""
    if not is_hub_name(str(spec)):
        return there(Path(spec))
    try:
        return fetch(str(spec))
    except UserError as error:
        raise UserError(f"no such model folder: {spec}; and as a name on the hub, owner/name: {error}") from None


def there(folder: Path) -> Path:
    """The folder itself; `UserError` where it is none."""
    if not folder.is_dir():
        raise UserError(f"no such model folder: {folder}{whereabouts(folder)}")
    return folder


def read_config(folder: Path) -> ModelConfig:
    """`UserError` when the folder is missing, or holds something other than a finished redraft model."""
    if not (there(folder) / CONFIG).exists():
        raise UserError(
            f"{folder} holds no finished model ({CONFIG} is missing): give a run folder whose training ended; `redraft "
            f"export` makes a model of one that still trains"
        )
    table = read_json(folder / CONFIG)
    if not isinstance(table, dict) or table.get("model_type") != "redraft":
        kind = table.get("model_type") if isinstance(table, dict) else type(table).__name__
        raise UserError(f'{folder / CONFIG} is not a redraft model (model_type {json.dumps(kind)}, expected "redraft")')
    fields = {k: v for k, v in table.items() if k not in ("model_type", "version")}
    try:
        return ModelConfig(**{**fields, "shape": Shape(**fields["shape"])})
    except (TypeError, KeyError) as error:
        raise UserError(f"{folder / CONFIG} is damaged: {error}") from None
