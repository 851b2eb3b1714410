"""Scripts written for version 0.1.0 import what they name."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from redraft.former import FORMER


@pytest.mark.parametrize("old", FORMER)
def test_a_former_name_is_the_module_itself(old: str) -> None:
    if old == "redraft.text.trove":
        pytest.importorskip("datatrove")
    now = importlib.import_module(FORMER[old])
    own = now.__spec__
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is called {FORMER[old]} now"):
        assert importlib.import_module(old) is now
    assert now.__spec__ is own and now.__name__ == FORMER[old]


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("redraft.evaluation.nothing")


def test_old_scripts_patch_what_runs() -> None:
    program = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from redraft.evaluation import tasks\n"
        "from redraft.evaluation.decoding import Writing\n"
        "from redraft.verbs.sample import arguments\n"
        "from redraft.evaluation.lm_eval import tasks as now\n"
        "print(tasks is now, Writing.__module__)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["True", "redraft.evaluation.lm_eval.decoding"]
