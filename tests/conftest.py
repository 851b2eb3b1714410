"""Tests run on one thread each (they are small, and run side by side), and never touch the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.processes import stop_server
from tests.slow import SLOW

torch.set_num_threads(1)
# The scripts lie beside the tests in a clone, and not in what is published of them.
OF_SCRIPTS = ["test_data_limited.py", "test_gpu_script.py"]
collect_ignore = [] if (Path(__file__).parents[1] / "benchmarks").is_dir() else OF_SCRIPTS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.nodeid.removeprefix("tests/").partition("[")[0]
        if name in SLOW or name.partition("::")[0] in SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_unconfigure() -> None:
    stop_server()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["REDRAFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data sets, where there is one."""
    folder = Path(os.environ.get("REDRAFT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder} (set REDRAFT_DATA)")
    return folder


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study directory: four families x three sizes x three budgets, one more arm, an evaluator, a frontier."""
    from tests.planted import write_study

    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    return folder
