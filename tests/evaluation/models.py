"""Small random models over bytes, whole and unguessed: nothing in them is trained."""

from __future__ import annotations

from typing import Any

import torch

from redraft.families.base import build
from redraft.hub.model import Model
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.text.tokenizers.tokenizer import Bytes
from tests.rounding import in_float64

SHAPE = Shape("dit", 2, 2, 16, 32, Bytes.size, 8)


def model(name: str, length: int = 64, record: dict[str, Any] | None = None, **options: Any) -> Model:
    """Random everywhere: at their first values adaLN and the output would hide what they multiply. In float64, so that what
    it scores and what it writes is the same in any batch."""
    network, generator = in_float64(initialised(SHAPE, 0)), torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return Model(build(name, options, Bytes.size), network.eval(), Bytes(), length, record or {})
