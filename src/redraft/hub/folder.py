"""Model folders: config.json, model.safetensors (in shards above 5 GB) and the tokenizer's files. Nothing in it
can run code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from redraft.errors import UserError
from redraft.files import make_folder, write_json
from redraft.hub.config import CONFIG, ModelConfig, read_config
from redraft.hub.shards import INDEX, WEIGHTS, read_weights, write_weights
from redraft.network.transformer import Transformer
from redraft.text.tokenizers.tokenizer import Tokenizer, load_tokenizer

__all__ = ["CONFIG", "INDEX", "WEIGHTS", "ModelConfig", "load_model", "read_config", "save_model"]


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
