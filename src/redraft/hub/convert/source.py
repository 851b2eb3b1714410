"""`Source`: a foreign checkpoint as it was found, before anything is made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redraft.hub.lazy_tensor import LazyTensor


@dataclass
class Source:
    """`tensors` by the names they have; `config`: what the file or its folder says of them, as plain values.

    `shadow`: the exponential moving average of the weights as an ordered list, where there is one. `top`: the names beside
    the weights. `tokenizer`: a tokenizer.json that is in the file itself.
    """

    path: Path
    tensors: dict[str, LazyTensor]
    config: dict[str, Any] = field(default_factory=dict)
    shadow: list[LazyTensor] | None = None
    lightning: bool = False
    top: frozenset[str] = frozenset()
    tokenizer: dict[str, Any] | None = None

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent
