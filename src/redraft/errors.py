"""Errors that users meet: one sentence that names what is wrong and what would work."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec

# Exit statuses: the user can mend it; a rank was lost, so try again (EX_TEMPFAIL); asked to leave, and left in order.
MISTAKE, LOST_RANK, ASKED = 2, 75, 130


class UserError(Exception):
    """Something the user can mend. The command line prints its message as one line and exits with status 2."""


class Diverged(UserError):
    """Training left the numbers. Doing the same again would end the same."""


def require(what: str, extra: str, *packages: str) -> None:
    """`UserError` where one of the packages is not installed: it names the extra of redraft that brings it."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"{what} needs the package {package!r}: pip install 'redraft[{extra}]'")


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a list: the nearest names first, then the whole list."""
    names = sorted(known)
    near = get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")
