"""Tiny real runs for tests: seconds on one thread, every part the real one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from redraft.config import RunConfig, merge, validated

# Blocks of today's AR models: shared heads, biases and norms of queries and keys, a tied head, learned positions.
GROWN: dict[str, Any] = {
    "llama": {"block": "llama", "depth": 2, "kv_heads": 1, "qkv_bias": True, "qk_norm": True, "tied": True},
    "gpt2": {"block": "gpt2", "depth": 2, "tied": True, "context": 16},
}


def corpus(folder: Path) -> Path:
    """Twelve documents of made-up prose, about 150 kB."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    words = "the of and a to in is you that it he was for on are as with his they".split()  # noqa: SIM905
    for number in range(12):
        text = " ".join(rng.choice(words) + rng.choice(["", "", "", ".", ","]) for _ in range(3000))
        (folder / f"{number:02}.txt").write_text(text)
    return folder


def tiny(source: Path, **over: Any) -> RunConfig:
    base: dict[str, Any] = {
        "family": "mdlm",
        "network": {"depth": 1, "heads": 2, "width": 16, "cond": 8},
        "data": {"source": str(source), "length": 16},
        "budget": {"steps": 30},
        "train": {"batch": 4, "lr": 3e-3, "threads": 1, "precision": "float32", "device": "cpu", "save_every": 4},
        "evaluate": {"rows": 8, "draws": 2, "batch": 8},
    }
    return validated(RunConfig, merge(base, over))
