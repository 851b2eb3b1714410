"""Published optima that ship with the package as tables; their sources are in SOURCES.md beside them.

They hold one row for each family and budget, the best model there. `redraft study fit published:NAME` fits them.
"""

from __future__ import annotations

from pathlib import Path

from redraft.errors import unknown

PREFIX = "published:"
PUBLISHED: tuple[str, ...] = ("scaling-beyond", "smdm")  # arXiv:2602.15014, arXiv:2410.18514


def published_path(name: str) -> Path | None:
    """The table that 'published:NAME' names; None for any other text. Raises `UserError` for an unknown NAME."""
    if not name.startswith(PREFIX):
        return None
    table = name.removeprefix(PREFIX)
    if table not in PUBLISHED:
        raise unknown("published table", table, PUBLISHED)
    return Path(__file__).parent / f"{table}.csv"
