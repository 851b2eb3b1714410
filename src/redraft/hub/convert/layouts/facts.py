"""Configurations of foreign checkpoints: those of transformers (flat) and of the research code (Hydra's nested tables)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from redraft.errors import UserError

Table = Mapping[str, Any]


class Facts:
    """Lookups in a configuration, whichever of its many names a fact has. A fact of the wrong type is not there."""

    def __init__(self, table: Table):
        self.table = table

    def number(self, *names: str) -> int | None:
        """The first that is a whole number."""
        return next((v for v in self._values(names) if type(v) is int), None)

    def real(self, *names: str) -> float | None:
        return next((float(v) for v in self._values(names) if type(v) in (int, float)), None)

    def text(self, *names: str) -> str | None:
        return next((v for v in self._values(names) if isinstance(v, str) and v and not v.startswith("${")), None)

    def flag(self, *names: str) -> bool | None:
        return next((v for v in self._values(names) if isinstance(v, bool)), None)

    def has(self, name: str) -> bool:
        return any(True for _ in self._values((name,)))

    def heads(self, path: Path, *names: str) -> int:
        """The number of heads, without which a network is not known; `UserError` where it is not told."""
        if not (heads := self.number(*names)):
            raise UserError(f"{path} has no config.json that tells its number of heads: give --heads")
        return heads

    def check(self, path: Path, only: Mapping[str, tuple[Any, ...]]) -> None:
        """`UserError` for what is not known here: `only` has what may be said of a name, which may be nothing."""
        for name, good in only.items():
            said = self.table.get(name)
            if said is not None and said not in good:
                can = f": only {' or '.join(map(repr, good))} is known" if good else ", which is not known here"
                raise UserError(f"{path} has {name} {str(said)[:60]}{can}")

    def _values(self, names: tuple[str, ...]) -> Iterator[Any]:
        for name in names:
            where: Any = self.table
            for part in name.split("."):
                where = where.get(part) if isinstance(where, Mapping) else None
            if where is not None:
                yield where


def facts_of(config: Table) -> Facts:
    """A configuration that was wrapped in another (PyTorchModelHubMixin) counts as its own."""
    inner = config.get("config")
    return Facts({**config, **inner} if isinstance(inner, Mapping) else config)
