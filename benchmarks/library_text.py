"""The source of this Python's standard library as three files of documents, cut by file: train, valid and test.

python benchmarks/library_text.py --into F
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
from pathlib import Path

from redraft.files import write_text

SHORTEST, PARTS = 200, 16  # characters; one file of sixteen for valid, one for test


def documents(root: Path) -> dict[str, list[dict[str, str]]]:
    """Files of `root` without installed packages, shuffled once, by part."""
    paths = sorted((path for path in root.rglob("*.py") if "site-packages" not in path.parts), key=str)
    random.Random(0).shuffle(paths)
    parts: dict[str, list[dict[str, str]]] = {"valid": [], "test": [], "train": []}
    for number, path in enumerate(paths):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if len(text) >= SHORTEST:
            part = {0: "valid", 1: "test"}.get(number % PARTS, "train")
            parts[part].append({"title": str(path.relative_to(root)), "text": text})
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True)
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    for part, rows in documents(Path(sysconfig.get_paths()["stdlib"])).items():
        write_text(options.into / f"{part}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        print(part, len(rows), "files,", sum(len(row["text"]) for row in rows), "characters")


if __name__ == "__main__":
    main()
