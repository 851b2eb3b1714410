"""The pages hold: commands parse, links lead somewhere, code is that of its file, numbers stand on the page they link to."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from redraft.cli import parsed
from redraft.commands.list import _keys
from redraft.config import RunConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md") if (ROOT / name).exists()]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
KEYS = set(_keys(RunConfig, ""))


def blocks(text: str) -> list[str]:
    """Lines of fenced and indented code, continued lines joined."""
    lines, fenced = [], False
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return lines


def commands(text: str) -> list[list[str]]:
    """The words of every `redraft ...` in a block, without what a page says behind it: after #, or four spaces."""
    found = (re.match(r"(?:.* -m )?redraft (.*)", line) for line in blocks(text))
    said = (re.split(r"\s{4,}", match[1].strip())[0] for match in found if match)
    return [shlex.split(words, comments=True) for words in said]


def set_keys(table: dict[str, object], prefix: str = "") -> set[str]:
    parts = (set_keys(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}"} for k, v in table.items())
    return set().union(*parts)


@pytest.mark.parametrize("name", NAMES)
def test_commands_on_a_page_are_taken(name: str) -> None:
    for command, *rest in commands((ROOT / name).read_text()):
        _, table = parsed(command, rest)
        if command in ("train", "plan"):
            unknown = {key for key in set_keys(table) if key not in KEYS and not key.startswith("family")}
            assert not unknown, f"{name}: redraft {command} {rest}: {unknown}"


def anchors(page: Path) -> set[str]:
    """Of the headings, as repository browsers and the site make them."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{name} links to {target}"


def numbers(text: str) -> set[str]:
    return {number.lstrip("0") for number in re.findall(r"(?<![\w/])\d*\.\d+", text)}


@pytest.mark.parametrize("name", ["choosing-a-family", "choosing-a-sampler", "pitfalls", "results/index"])
def test_numbers_stand_on_the_page_they_link_to(name: str) -> None:
    """Of every section, and every row of a table of links; a number that is worked out from them has \u2248 before it."""
    page = ROOT / "docs" / f"{name}.md"
    for part in re.split(r"^## |^\|(?= \[)", page.read_text(), flags=re.MULTILINE):
        linked = [(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]+\.md)", part)]
        known = set().union(*(numbers(source.read_text()) for source in linked))
        told = numbers(re.sub(r"\u2248 [\d.]+( to [\d.]+)?|`[^`]*`|```.*?```|arXiv:\S+", "", part, flags=re.DOTALL))
        assert told <= known, f"{name}, {part[:40]!r}: {sorted(told - known)} on none of {[p.name for p in linked]}"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_the_demo_installs_less_than_the_tests() -> None:
    for target, extra in (("demo", ".[figures,serve]"), ("test", ".[dev]"), ("docs", ".[docs]")):
        command = ["make", "-n", target, "VENV=nowhere"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert re.findall(r'-e "(.*?)"', done.stdout) == [extra]


def test_the_worked_example_is_the_file() -> None:
    """Each block of Python in the guide is a piece of examples/my_family.py, word for word."""
    guide, file = (ROOT / path for path in ("docs/guides/add-a-family.md", "examples/my_family.py"))
    pieces = re.findall(r"```python\n(.*?)```", guide.read_text(), flags=re.DOTALL)
    assert len(pieces) == 2 and all(piece in file.read_text() for piece in pieces)
