"""redraft: train, sample, score and compare left-to-right and diffusion language models on one code path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redraft import former

__version__ = "0.2.0"

if TYPE_CHECKING:
    from redraft.hub.model import Model as Model
    from redraft.hub.model import load as load
    from redraft.registry import Entry as Entry
    from redraft.registry import register as register
    from redraft.types import Canvas as Canvas

former.install()

_PUBLIC = {
    "load": "redraft.hub.model",
    "Model": "redraft.hub.model",
    "Canvas": "redraft.types",
    "Entry": "redraft.registry",
    "register": "redraft.registry",
}


def __getattr__(name: str) -> Any:
    """`redraft.load` and its kin import torch when first used, not when redraft is imported."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'redraft' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)
