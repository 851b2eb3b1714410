"""The recipe `books-gpu` from a folder of books: a BPE of 4096 ids, 80 runs, the frontier. Ten minutes of one H100.

    python benchmarks/books_gpu.py --data-dir DATA --into runs/books-gpu --device cuda --json books-gpu.json
    python benchmarks/books_gpu.py --data-dir DATA --into runs/rehearsal --device cpu --quick          a rehearsal

DATA holds books/train_0*.jsonl.xz and books/valid.jsonl.xz. The BPE is learned, a minute on a CPU, unless it is given.
Interrupted, or ended after --seconds, the same command goes on. The JSON holds every record and measurement there is so far,
for a machine that goes away with its disk; `redraft study report` makes the page of the folder, where altair is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import measure
from zero_shot import learn_tokenizer

from redraft.commands.plan import recipe_table
from redraft.config import merge
from redraft.files import make_folder, read_json, write_json, write_text

# A rehearsal: the same runs, at budgets of some seconds, of networks and rows an eighth as wide and long.
SHRUNK, SMALLEST = 1e-5, 3e8
QUICK = {"data": {"length": 64}, "evaluate": {"rows": 8, "draws": 1}, "train": {"precision": "float32"}}
TINY = {"size": "", "depth": 1, "width": 16, "heads": 1}


def recipe(args: Namespace, tokenizer: Path) -> dict[str, Any]:
    """The study, with its paths; shrunk for a rehearsal."""
    books = args.data_dir.resolve() / "books"
    data = {
        "source": str(books / f"train_0{'0' if args.quick else '*'}.jsonl.xz"),
        "validation": str(books / "valid.jsonl.xz"),
    }
    table = merge(recipe_table("books-gpu"), {"base": {"data": {**data, "tokenizer": str(tokenizer.resolve())}}})
    table["workers"] = args.workers or (2 if args.quick else table["workers"])
    if args.quick:
        table["base"] = merge(table["base"], QUICK)
        for arm in [*table["arm"], table["frontier"]["judge"]]:
            arm["flops"] = [max(SMALLEST, flops * SHRUNK) for flops in arm["flops"]]
            arm["by_size"] = {size: {"network": TINY} for size in arm["sizes"]}
            arm["set"] = merge(arm["set"], {"train": {"batch": 2, "compile": False}})
        table["frontier"] |= {"samples": 4, "length": 64, "steps": [2, 4], "batches": [1, 4]}
    return table


def redraft(*words: str, end: float) -> bool:
    """Whether a command was done by then. Its workers end with it, and what it left off is gone on with."""
    with subprocess.Popen([sys.executable, "-m", "redraft", *words]) as process:
        try:
            status = process.wait(max(1.0, end - time.time()))
        except subprocess.TimeoutExpired:
            process.terminate()
            return False
    if status:
        raise SystemExit(status)
    return True


def keep(args: Namespace, folder: Path) -> None:
    """All there is so far, in one file."""
    records = [read_json(path) for path in sorted(folder.glob("runs/*/record.json"))]
    lines = {name: folder / f"{name}.jsonl" for name in ("frontier", "samples")}
    rows = {
        name: [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for name, path in lines.items()
    }
    if args.json:
        make_folder(args.json.resolve().parent)
        write_json(args.json, {"machine": measure.machine(args.device), "records": records, **rows})
    print(f"{len(records)} runs, {len(rows['frontier'])} measurements", flush=True)


def main(args: Namespace) -> None:
    import tomli_w

    end, folder = time.time() + args.seconds, args.into / "study"
    make_folder(args.into)
    tokenizer = args.tokenizer or args.into / "tokenizer.json"
    if not tokenizer.exists():
        learn_tokenizer(args.data_dir / "books", tokenizer)
    write_text(args.into / "recipe.toml", tomli_w.dumps(recipe(args, tokenizer)))
    where = ["--device", str(args.device)]
    done = redraft("study", "run", str(args.into / "recipe.toml"), "--into", str(folder), *where, end=end)
    keep(args, folder)
    if done:
        precision = "float32" if args.device.type == "cpu" else "bfloat16"
        redraft("study", "frontier", str(folder), *where, "--precision", precision, end=end)
        keep(args, folder)


def parsed() -> Namespace:
    parser = ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="holds the folder books")
    parser.add_argument("--into", type=Path, default=Path("runs/books-gpu"))
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json of 4096 ids")
    parser.add_argument("--workers", type=int, help="runs at a time; the recipe's if left out")
    parser.add_argument("--seconds", type=float, default=1e9, help="after which it stops, and keeps what there is")
    parser.add_argument("--quick", action="store_true", help="tiny networks and budgets: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep records and measurements in one file")
    measure.device_argument(parser)
    return measure.placed(parser.parse_args())


if __name__ == "__main__":
    main(parsed())
