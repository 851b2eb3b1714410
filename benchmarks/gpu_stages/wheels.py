"""Wheels for a machine without a network: unpacked, not installed, and only those that the machine lacks. No torch."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path


def modules(wheel: Path) -> set[str]:
    """The names by which what is in a wheel is imported."""
    with zipfile.ZipFile(wheel) as held:
        heads = {Path(name).parts[0] for name in held.namelist()}
    return {head.partition(".")[0] for head in heads if not head.endswith((".dist-info", ".data", ".libs"))}


def unpack(folder: Path, into: Path) -> list[str]:
    """The wheels of `folder` of which something cannot be imported here, unpacked into `into`; their names."""
    lacking = [wheel for wheel in sorted(folder.glob("*.whl")) if any(not _known(name) for name in modules(wheel))]
    for wheel in lacking:
        with zipfile.ZipFile(wheel) as held:
            held.extractall(into)
    return [wheel.name for wheel in lacking]


def _known(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
