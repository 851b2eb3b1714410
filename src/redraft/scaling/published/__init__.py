"""Published optima and laws that ship with the package; their sources are in SOURCES.md beside them.

Tables hold one row for each family and budget, the best model there: `redraft study fit published:NAME` fits them. Of others
the coefficients of a law are known and no optima (laws.py): they are told, not fitted.
"""

from __future__ import annotations

from pathlib import Path

from redraft.errors import UserError, unknown

PREFIX = "published:"
PUBLISHED: tuple[str, ...] = ("scaling-beyond", "smdm")  # arXiv:2602.15014, arXiv:2410.18514
LAWS: tuple[str, ...] = ("quokka", "von-ruette")  # arXiv:2510.03280, arXiv:2512.10858


def published_path(name: str) -> Path | None:
    """The table that 'published:NAME' names; None for any other text. Raises `UserError` for an unknown NAME, and for one of a
    law, which has no table."""
    if not name.startswith(PREFIX):
        return None
    table = name.removeprefix(PREFIX)
    if table in LAWS:
        raise UserError(
            f"{name} is a law without a table of optima: `redraft study fit {name}` shows it. Tables: {', '.join(PUBLISHED)}."
        )
    if table not in PUBLISHED:
        raise unknown("published table", table, (*PUBLISHED, *LAWS))
    return Path(__file__).parent / f"{table}.csv"
