"""The examples in docstrings of the public interface run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path

import pytest

from redraft.registry import FAMILIES

MODULES = (
    "hub.model", "registry", "network.sizes", "noise.counter_rng", "noise.kernels", "noise.schedules", "scaling.records",
)  # fmt: skip
MODEL = Path(__file__).parent / "fixtures" / "v0.1.0" / "runs" / "mdlm"


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a trained model at runs/first, and a registry that forgets what an example registers."""
    shutil.copytree(MODEL, tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("redraft.registry.FAMILIES", dict(FAMILIES))


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name: str, first: None) -> None:
    result = doctest.testmod(importlib.import_module(f"redraft.{name}"), optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed
