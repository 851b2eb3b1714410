"""Provenance of a result: versions, git commit, machine, and the hash of the initial weights."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import redraft
from redraft.hub.shards import weight_files
from redraft.network.device import device_name


def start_summary(start: str) -> dict[str, str]:
    """Where a run's first weights come from."""
    digest = hashlib.sha256()
    for path in weight_files(Path(start)):
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return {"folder": start, "sha256": digest.hexdigest()}


def versions() -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "safetensors")}
    return {"redraft": redraft.__version__, "python": platform.python_version(), **libraries}


def git_state() -> dict[str, Any] | None:
    """The commit of the source tree that runs, and whether it was changed since; None for an installed package."""
    here = Path(__file__).parent
    ask = ["git", "-C", str(here), "status", "--porcelain=v2", "--branch", "--untracked-files=no", "."]
    try:
        out = subprocess.run(ask, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    commit = next((line.split()[-1] for line in out if line.startswith("# branch.oid")), None)
    return {"commit": commit, "changed": any(not line.startswith("#") for line in out)}


def machine(device: str) -> dict[str, Any]:
    name = device_name(torch.device(device))
    return {"device": device, "name": name, "threads": torch.get_num_threads(), "system": platform.system()}
