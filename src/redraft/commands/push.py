"""Upload a model to the hub. A run folder goes up as its model alone, with a card made from its record.

redraft push exported/first owner/name --private          (HF_TOKEN, or `hf auth login`, says who you are)
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redraft.display import emit
from redraft.hub.config import there


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a run folder, or one that `redraft export` wrote")
    parser.add_argument("name", help="owner/name")
    parser.add_argument("--private", action="store_true", help="make it private, if it is new")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    there(options.folder)
    from redraft.hub.export.export import export
    from redraft.hub.remote import push

    if (options.folder / "README.md").is_file():
        url = push(options.folder, options.name, options.private)
    else:
        with TemporaryDirectory() as folder:
            url = push(export(options.folder, "native", Path(folder) / "model"), options.name, options.private)
    emit({"url": url, "name": options.name}) if options.json else print(url)
