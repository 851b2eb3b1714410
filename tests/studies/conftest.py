"""A finished study, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.studies.planted import write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study directory: four families x three sizes x three budgets, one more arm, a judge, a frontier."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    return folder
