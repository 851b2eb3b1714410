"""The wheel works where the source is not: package data, recipes and the page template are inside it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked into an empty folder; dependencies come from the environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("redraft-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, program: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, env=environment, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_everything_the_source_does(installed: Path) -> None:
    source = {p.relative_to(ROOT / "src") for p in (ROOT / "src" / "redraft").rglob("*") if p.is_file()}
    wanted = {p for p in source if "__pycache__" not in p.parts}
    assert wanted <= {p.relative_to(installed) for p in installed.rglob("*")}
    assert any(p.name == "LICENSE" for p in installed.rglob("*"))


def test_installed_package_plans_trains_and_samples(installed: Path, tmp_path: Path) -> None:
    program = (
        "import redraft; from redraft.cli import main\n"
        f"assert redraft.__file__.startswith({str(installed)!r}), redraft.__file__\n"
        "main(['plan', 'demo'])\n"
        "main('train --into run --steps 2 --size 6k --network.cond 8 --length 16 --batch 2 "
        "--evaluate.rows 2 --evaluate.draws 1 --json'.split())\n"
        "main('sample run --length 8 --steps 2'.split())\n"
        "from redraft.report.report import write_report"
    )
    assert "runs (" in run(installed, program, tmp_path)
    assert (tmp_path / "run" / "record.json").exists()


def test_installed_package_writes_a_report(installed: Path, tmp_path: Path) -> None:
    """The page template is found through the package, not through the source tree."""
    program = (
        "from importlib import resources; import redraft.report\n"
        "print(len((resources.files(redraft.report) / 'report.html.j2').read_text()))"
    )
    assert int(run(installed, program, tmp_path)) > 1000
