"""A model as a folder: config.json, model.safetensors (or shards of it, above 5 GB) and the tokenizer's files. Nothing in it
can run code."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redraft.errors import UserError
from redraft.files import make_folder, read_json, write_json
from redraft.hub.shards import INDEX, WEIGHTS, read_weights, write_weights
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["CONFIG", "INDEX", "WEIGHTS", "ModelConfig", "load_model", "read_config", "save_model"]

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


def save_model(folder: Path, config: ModelConfig, network: nn.Module, tokenizer: Tokenizer) -> None:
    """Write the folder; config.json last, so that a folder that has one is complete."""
    make_folder(folder)
    tokenizer.save(folder)
    write_weights(folder, dict(network.named_parameters()))
    write_json(folder / CONFIG, config.to_json())


def load_model(folder: Path, device: torch.device) -> tuple[ModelConfig, Transformer, Tokenizer]:
    """Rebuild the network strictly: a missing, extra or misshaped tensor is named."""
    config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer.fingerprint != config.tokenizer or tokenizer.size != config.shape.vocab:
        raise UserError(
            f"the tokenizer in {folder} ({tokenizer.name}, {tokenizer.size} ids) is not the one that its model was "
            f"trained with ({config.shape.vocab} ids)"
        )
    with torch.device("meta"):
        network = Transformer(config.shape)
    try:
        network.load_state_dict(read_weights(folder, device), strict=True, assign=True)
    except (UserError, RuntimeError) as error:
        detail = " ".join(str(error).split())
        raise UserError(f"{folder} does not hold this model's weights: {detail[:300]}") from None
    return config, network.eval(), tokenizer


def read_config(folder: Path) -> ModelConfig:
    """`UserError` when the folder is missing, or holds something other than a finished redraft model."""
    if not folder.is_dir():
        raise UserError(f"no such model folder: {folder}")
    if not (folder / CONFIG).exists():
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
