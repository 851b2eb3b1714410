"""The architecture, held by a test: packages import leftwards only, no file is in a cycle, listing loads no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.slow import SLOW

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "redraft"
# A package imports itself and packages of earlier layers; two of one layer do not import each other.
LAYERS = (
    (
        "__init__",
        "types",
        "errors",
        "config",
        "config_network",
        "registry",
        "files",
        "display",
        "numbers",
        "accelerator",
        "former",
    ),
    ("noise", "text", "network", "scaling"),
    ("planning", "families"),
    ("sampling",),
    ("training", "hub"),
    ("evaluation", "serving"),
    ("runs",),
    ("studies", "tasks"),
    ("frontier",),
    ("report",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}
FORBIDDEN = {("network", "families"), ("families", "sampling")}
WITHOUT_TORCH = ("scaling", "planning", "report")
LARGEST_FOLDER = 14
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]
PACKAGES = {here: [n for n in NAMES if n.split("/")[0] == here] for here in sorted({n.split("/")[0] for n in NAMES})}
MODULES = {".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> set[str]:
    """Modules of redraft that a file imports anywhere in it, for types too; `redraft/__init__` names its own lazily."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "redraft":
            tail = node.module.removeprefix("redraft").removeprefix(".")
            for name in (f"{tail}.{alias.name}".removeprefix(".") for alias in node.names):
                found.add(name if name in MODULES else tail)
    return found - {""}


@pytest.mark.parametrize("package", sorted(PACKAGES.keys() - {"__init__.py"}))
def test_packages_import_leftwards_only(package: str) -> None:
    here = package.removesuffix(".py")
    for name in PACKAGES[package]:
        for there in {module.split(".")[0] for module in imported(SOURCE / name)} - {here}:
            assert there in LAYER, f"{name} imports {there}, which is in no layer"
            assert LAYER[there] < LAYER[here] or LAYER[here] == 0 == LAYER[there], (
                f"{name} imports {there}, to its right"
            )
            assert (here, there) not in FORBIDDEN, f"{name} imports {there}"


def test_no_file_is_in_a_cycle_of_imports() -> None:
    TopologicalSorter({name: imported(path) - {name} for name, path in MODULES.items()}).prepare()


def test_no_folder_has_more_files_than_one_can_see() -> None:
    sizes = Counter(path.parent for path in FILES if path.name != "__init__.py")
    large = {folder.name: n for folder, n in sizes.items() if n > LARGEST_FOLDER and folder.name != "commands"}
    assert not large


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_package_loads_no_torch(package: str) -> None:
    names = [f"redraft.{name}" for name in MODULES if name.split(".")[0] == package]
    program = f"import sys, importlib; [importlib.import_module(n) for n in {names}]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("package", PACKAGES)
def test_files_are_short_and_say_what_they_are(package: str) -> None:
    for name in PACKAGES[package]:
        text = (SOURCE / name).read_text()
        assert len(text.splitlines()) <= 400, f"{name} has more than 400 lines"
        assert ast.get_docstring(tree(SOURCE / name)), f"{name} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_are_short(package: str) -> None:
    for name in PACKAGES[package]:
        for node in ast.walk(tree(SOURCE / name)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{name}:{node.name} has {length} lines"


@pytest.mark.parametrize("package", PACKAGES)
def test_code_names_no_device_and_no_machine(package: str) -> None:
    """Which accelerator it is stands in what the user asks for and in records, and nowhere in the code."""
    for name in PACKAGES[package]:
        text = (SOURCE / name).read_text()
        assert not re.search(r"""["']cuda""", text), f"{name} names a device"
        assert not re.search(r"/(home|root|Users)/", text), f"{name} names a machine"


WITHOUT_MODELS = [
    ["--help"],
    ["list"],
    ["list", "keys"],
    ["plan", "demo"],
    ["plan", "--flops", "1e12"],
    ["train", "--help"],
    ["race", "--help"],
    ["serve", "--help"],
]


@pytest.mark.parametrize("arguments", WITHOUT_MODELS, ids=" ".join)
def test_listing_and_planning_load_no_torch(arguments: list[str]) -> None:
    program = (
        "import sys, io, contextlib\n"
        "from redraft.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    try: main(sys.argv[1:])\n"
        "    except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_registry_options_are_the_families_own() -> None:
    """The registry repeats each family's and sampler's options, so that listing needs no torch: they must agree."""
    from dataclasses import fields

    from redraft.families.base import build
    from redraft.registry import FAMILIES, SAMPLERS

    for name, entry in FAMILIES.items():
        assert {f.name for f in fields(entry.load())} - {"vocab"} == set(entry.options)
        assert build(name, {}, 7) == entry.load()(vocab=7)
    for entry in SAMPLERS.values():
        defaults = {f.name: f.default for f in fields(entry.load())}
        assert defaults == dict(entry.options)


def test_readme_tree_names_every_package() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in sorted({n.split("/")[0] for n in NAMES if "/" in n}):
        assert f"{name}/" in readme, f"README.md does not say what {name}/ is"


def test_the_list_of_slow_tests_names_tests_that_exist() -> None:
    for name in SLOW:
        path, _, test = name.partition("::")
        text = (ROOT / "tests" / path).read_text()
        assert not test or f"def {test}(" in text, name
