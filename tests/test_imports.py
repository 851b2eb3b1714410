"""The architecture, held by a test: rooms import leftwards only, files stay short, the front door stays cheap."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "redraft"
# A room may import from itself and from rooms of a lower rank.
RANK = {
    **dict.fromkeys(
        ("__init__", "types", "errors", "config", "registry", "files", "display", "numbers", "accelerator"), 0
    ),
    **dict.fromkeys(("noise", "text", "network"), 1),
    "families": 2,
    "sampling": 3,
    **dict.fromkeys(("hub", "training"), 4),
    "evaluation": 5,
    **dict.fromkeys(("studies", "tasks"), 6),
    "verbs": 7,
    "cli": 8,
    "__main__": 9,
}
FORBIDDEN = {("network", "families"), ("families", "sampling"), ("hub", "training"), ("training", "hub")}
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]


def room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports, anywhere in it; the lazy attributes of `redraft/__init__` are strings, not imports."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "redraft":
            tail = node.module.split(".")[1:]
            rooms |= {tail[0]} if tail else {alias.name for alias in node.names if alias.name in RANK}
    return rooms


@pytest.mark.parametrize("name", NAMES)
def test_doors_open_one_way(name: str) -> None:
    here = room(Path(name).parts)
    if here == "__init__":
        return
    for there in imported_rooms(SOURCE / name) - {here}:
        assert there in RANK, f"{name} imports unknown room {there}"
        same_floor = RANK[there] == RANK[here]
        assert RANK[there] < RANK[here] or (same_floor and RANK[here] == 0), f"{name} imports {there}, to its right"
        assert (here, there) not in FORBIDDEN


@pytest.mark.parametrize("name", NAMES)
def test_files_are_short_and_say_what_they_are(name: str) -> None:
    text = (SOURCE / name).read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), f"{name} has no docstring"


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_short(name: str) -> None:
    for node in ast.walk(ast.parse((SOURCE / name).read_text())):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{name}:{node.name} has {length} lines"


@pytest.mark.parametrize("name", NAMES)
def test_code_names_no_device_and_no_machine(name: str) -> None:
    """Which accelerator it is stands in what the user asks for and in records, and nowhere in the code."""
    text = (SOURCE / name).read_text()
    assert not re.search(r"""["']cuda""", text)
    assert not re.search(r"/(home|root|Users)/", text)


QUIET = [["--help"], ["list"], ["list", "keys"], ["plan", "demo"], ["plan", "--flops", "1e12"], ["train", "--help"]]


@pytest.mark.parametrize("arguments", QUIET, ids=" ".join)
def test_front_door_loads_no_torch(arguments: list[str]) -> None:
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


def test_readme_tree_names_every_room() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in sorted({room(Path(n).parts) for n in NAMES if "/" in n}):
        assert f"{name}/" in readme, f"README.md does not say what {name}/ is"
