"""A cache of scored requests on disk, so that an interrupted evaluation goes on where it stopped.

A key is everything that an answer depends on, the model's weights and all settings included, so one file serves any number
of models. Several processes may write it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.files import make_folder
from redraft.hub.model import Model


class Answers:
    """JSON values by key, in an SQLite file. `about` goes into every key."""

    def __init__(self, path: Path, about: Mapping[str, Any]):
        self.about = json.dumps(about, sort_keys=True)
        make_folder(path.parent)
        try:
            self.file = sqlite3.connect(path, timeout=60)
            with self.file:
                self.file.execute("create table if not exists answers (key text primary key, value text)")
        except sqlite3.Error as error:
            raise UserError(f"{path} cannot be used as a file of answers: {error}") from None

    def key(self, *question: Any) -> str:
        return hashlib.sha256(json.dumps([self.about, *question], sort_keys=True).encode()).hexdigest()

    def known(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those keys that are there."""
        ask = "select value from answers where key = ?"
        found = ((key, self.file.execute(ask, (key,)).fetchone()) for key in keys)
        return {key: json.loads(row[0]) for key, row in found if row is not None}

    def keep(self, values: Mapping[str, Any]) -> None:
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        with self.file:
            self.file.executemany("insert or replace into answers values (?, ?)", rows)


def fingerprint(model: Model) -> str:
    """sha256 (hex) of what a model answers from: its family with all options, its weights, its tokenizer."""
    digest = hashlib.sha256(f"{model.family!r} {model.network.compute} {model.length}".encode())
    digest.update(model.tokenizer.fingerprint.encode())
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
