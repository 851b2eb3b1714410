"""Small models with random weights, of any family and block, as the folders that runs leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from redraft.hub.folder import ModelConfig, save_model
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.text.tokenizers.tokenizer import Bytes, Tokenizer

BYTES = 257


def network(block: str, vocab: int, seed: int = 0) -> Transformer:
    """Two layers, and no weight where training begins: there the blocks of "dit" would be the identity."""
    made = initialised(Shape(block, 2, 2, 16, 40, vocab, 8 if block == "dit" else 0), seed)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
    return made.eval()


def folder(
    into: Path,
    family: str,
    block: str,
    options: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """A model trained, as it says, on rows of 24 tokens."""
    tokenizer = tokenizer or Bytes()
    made = network(block, tokenizer.size)
    config = ModelConfig(family, options or {}, made.shape, 24, tokenizer.fingerprint, record or {})
    save_model(into, config, made, tokenizer)
    return into
