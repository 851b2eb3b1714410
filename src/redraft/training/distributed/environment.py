"""Rank and world size from the environment variables of launchers: the one place that reads them. No torch.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. So do notebooks, containers and
batch systems, sometimes in part, and a shell may keep what a launcher left: what cannot be meant is refused by name, before a
collective waits for ranks that will never come.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from redraft.errors import UserError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NAMES = (*NEEDED, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SETTERS = "torchrun, a batch system or a container usually sets them"


@dataclass(frozen=True)
class Told:
    """Rank `rank` of `size`, `local` of the `per_node` on its machine; the first rank listens at `address`."""

    rank: int
    size: int
    local: int
    per_node: int
    address: str


def told(environment: Mapping[str, str] = os.environ) -> Told | None:
    """None for a process on its own: nothing says otherwise, or it is the only one of its world. Empty is not set.

    `UserError` for numbers that are none, and for a world of which only a part is told.
    """
    given = {name: value.strip() for name in NAMES if (value := environment.get(name, "")).strip()}
    number = {name: _number(name, given) for name in given if name != "MASTER_ADDR"}
    missing = [name for name in NEEDED if name not in given]
    if not {"RANK", "WORLD_SIZE"} & given.keys() or (missing and number.get("WORLD_SIZE") == 1):
        return None
    if missing:
        raise UserError(f"{_said(given)} without {' and '.join(missing)}; {SETTERS}, all together: {_mend(given)}")
    rank, size = number["RANK"], number["WORLD_SIZE"]
    if not 0 <= rank < size:
        raise UserError(f"{_said(given)}: ranks are 0 to WORLD_SIZE - 1; {SETTERS}: {_mend(given)}")
    address = f"{given['MASTER_ADDR']}:{given['MASTER_PORT']}"
    return Told(rank, size, number.get("LOCAL_RANK", 0), number.get("LOCAL_WORLD_SIZE", size), address)


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """This process's number on its machine, None where nothing says so."""
    name = "LOCAL_RANK"
    value = environment.get(name, "").strip()
    return _number(name, {name: value}) if value else None


def mend() -> str:
    """How to start as one of several, and how alone."""
    return _mend({name: os.environ[name] for name in NAMES if name in os.environ})


def _number(name: str, given: Mapping[str, str]) -> int:
    """A number that is not below 0, of a port not above 65535."""
    value = given[name]
    most = 65535 if name == "MASTER_PORT" else 2**31
    if not (value.isascii() and value.isdecimal() and int(value) <= most):
        what = "a port" if name == "MASTER_PORT" else "a whole number"
        raise UserError(f"{_said(given)}: {name} is not {what}; {SETTERS}: {_mend(given)}")
    return int(value)


def _said(given: Mapping[str, str]) -> str:
    return "the environment has " + ", ".join(f"{name}={value}" for name, value in given.items())


def _mend(given: Mapping[str, str]) -> str:
    alone = " ".join(f"-u {name}" for name in given)
    return f"start several ranks by torchrun, or one alone by `env {alone} redraft ...`"
