"""The sdist and the wheel made of it work where the source is not: package data, recipes and page templates are inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)]
    subprocess.run(build, check=True, capture_output=True, cwd=ROOT)
    (archive,) = folder.glob("redraft-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty virtual environment, and in it the wheel that is built from the sdist; dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "-q", "-w", "."]
    subprocess.run(build, check=True, capture_output=True, cwd=folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "environment"], check=True, cwd=folder)
    (site,) = (folder / "environment").glob("lib/python*/site-packages")
    (wheel,) = folder.glob("redraft-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return site


def run(installed: Path, program: str, cwd: Path) -> str:
    python = installed.parents[2] / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-P", "-c", program], capture_output=True, text=True, env=environment, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_everything_the_source_does(installed: Path) -> None:
    source = {p.relative_to(ROOT / "src") for p in (ROOT / "src" / "redraft").rglob("*") if p.is_file()}
    wanted = {p for p in source if "__pycache__" not in p.parts}
    assert wanted <= {p.relative_to(installed) for p in installed.rglob("*")}
    assert any(p.name == "LICENSE" for p in installed.rglob("*"))


def test_sdist_holds_tests_pages_and_examples(source: Path) -> None:
    for name in (
        "tests/test_wheel.py",
        "docs/index.md",
        "docs/conf.py",
        "examples/my_family.py",
        "Makefile",
        "CHANGELOG.md",
    ):
        assert (source / name).exists(), name


def test_in_an_empty_environment_own_text_becomes_a_report(source: Path, installed: Path, tmp_path: Path) -> None:
    """The example, whole: a tokenizer, a study of two runs, its fit and its page; then a sample, by the installed package."""
    (tmp_path / "book.txt").write_text("so the cat sat on the mat\n\n" * 400)
    sizes = ["--vocabulary", "270", "--sizes", "3.1k", "--flops", "1e7", "--length", "16"]
    words = ["book.txt", "--into", "study", *sizes, "--workers", "1"]
    program = (
        "import sys, redraft; from redraft.cli import main\n"
        f"assert redraft.__file__.startswith({str(installed)!r}), redraft.__file__\n"
        "main(['plan', 'demo'])\n"
        f"sys.path.insert(0, {str(source / 'examples')!r}); import own_text; own_text.main({words})\n"
        "main('sample study/runs/mdlm-3.1k-1e07-s0 --length 8 --steps 2'.split())"
    )
    assert "2 runs of 2 families" in run(installed, program, tmp_path)
    record = json.loads((tmp_path / "study" / "runs" / "ar-3.1k-1e07-s0" / "record.json").read_text())
    assert record["versions"]["redraft"] and "<title>AR and MDLM" in (tmp_path / "study" / "report.html").read_text()
