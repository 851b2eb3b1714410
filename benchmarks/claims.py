"""Every row of docs/results/claims.md that was measured, by one command each.

    python benchmarks/claims.py S5 --data-dir ../shared/data --into F
    python benchmarks/claims.py S5 --data-dir ../shared/data --into F --dry      its commands alone

Commands of redraft do the work, in order; what is there is not done again, so the same command continues. What a row costs,
in hours of one core (AMD EPYC with AVX2), is in HOURS; rows that share a study share it. B8, S6 and S7 need a GPU:
`redraft plan claims-gpu` and docs/results/deciding.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

Command = list[str]  # of redraft, without its name; or a script of benchmarks/
PUZZLES = {
    "lists": "--items 4 --numbers 12",
    "graphs": "--paths 2 --edges 3 --nodes 12",
    "sudoku": "--side 4 --blanks 8",
    "wordproblems": "--chain 2 --idle 0",
    "arithmetic": "--digits 2 --order lowest_first",
}
MARKOV = (
    "--families ar,mdlm --steps 1600 --sampling-steps 4,6,8,12,16,24,48,96 --rounds 8 --workers 1 "
    "--network.depth 2 --network.width 64 --network.heads 4"
)
SPLITS = ((1850, 1910), (1870, 1900))
WEIGHTS = ("0.5", "1", "2", "4")  # of guidance, beside 0
BEST = {"1.25e10": "3.1k", "4e10": "3.1k", "1.25e11": "9k", "4e11": "20k", "1.25e12": "20k", "4e12": "80k"}  # MDLM's


def books(data: Path) -> Command:
    """The text of the recipes, wherever the data are."""
    return ["--data.source", f"{data}/books/train_0*.jsonl.xz", "--data.validation", f"{data}/books/valid.jsonl.xz"]


def study(recipe: str, data: Path, into: Path, *after: str) -> Iterator[Command]:
    yield ["study", "run", recipe, "--into", f"{into / recipe}", *books(data)]
    for action in after:
        name, *flags = shlex.split(action)
        yield ["study", name, f"{into / recipe}", *flags]


def grid(data: Path, into: Path) -> Iterator[Command]:
    """B1, B2, B3, B5 and S1, and MDLM's exact likelihood beside its bound."""
    yield from study("books-grid", data, into, "fit", "report")
    for budget, size in BEST.items():
        run, out = into / "books-grid" / "runs" / f"mdlm-{size}-{budget}-s0", into / f"exact-{budget}"
        yield ["eval", f"{run}", "--rows", "128", "--draws", "16", "--out", f"{out}-bound.json"]
        for order in ("margin", "entropy"):
            flags = ["--estimator", "chain_rule", "--order", order, "--rows", "128"]
            yield ["eval", f"{run}", *flags, "--out", f"{out}-{order}.json"]


def frontier(data: Path, into: Path) -> Iterator[Command]:
    hardware = 'frontier --as 170M --hardware h100 --batches "[1, 16, 128]"'
    yield from study("books-grid", data, into, "frontier", hardware, 'frontier --as 170M --batches "[1]"')


def puzzles(data: Path, into: Path) -> Iterator[Command]:
    folders = []
    for name, flags in PUZZLES.items():
        for steps in ("300", "900"):
            folders.append(f"{into / 'puzzles' / name}-{steps}")
            yield ["task", name, "--into", folders[-1], "--steps", steps, "--seeds", "2", *flags.split()]
    yield ["task", "ranks", "--into", f"{into / 'puzzles' / 'ranks'}", "--from", *folders]
    by_steps = ["--steps", "900", "--seeds", "2", *PUZZLES["lists"].split(), "--sampling-steps", "1,2,4,16"]
    yield ["task", "lists", "--into", folders[1], *by_steps]


def guidance(data: Path, into: Path) -> Iterator[Command]:
    """Two texts, two estimators; the weight is chosen on the validation text, before the test text is read."""
    folder = into / "guidance"
    library = {part: folder / "library" / f"{part}.jsonl" for part in ("train", "valid", "test")}
    if not all(path.exists() for path in library.values()):
        yield ["benchmarks/library_text.py", "--into", f"{folder / 'library'}"]
    texts = {
        "books": {part: f"{data}/books/{part}.jsonl.xz" for part in ("valid", "test")} | {"train": books(data)[1]},
        "library": {part: str(path) for part, path in library.items()},
    }
    for name, text in texts.items():
        model, source = folder / name, ["--data.source", text["train"], "--data.validation", text["valid"]]
        yield ["train", "benchmarks/guidance.toml", "--into", f"{model}", *source]
        for estimator, asked in (("mask_count", "240"), ("chain_rule", "160")):
            ask = ["eval", f"{model}", "--tasks", "continuation_choice", "--estimator", estimator]
            place = folder / f"{name}-{estimator}"
            few, many = (["--draws", n] if estimator == "mask_count" else [] for n in ("16", "32"))
            for w in ("0", *WEIGHTS):
                out = ["--guidance", w, "--out", f"{place}-valid-{w}.json"]
                yield [*ask, *few, "--text", text["valid"], "--limit", asked, *out]
            best = chosen(place)
            test = [*ask, *many, "--text", text["test"], "--limit", "600", "--guidance"]
            yield [*test, "0", "--out", f"{place}-test-0.json"]
            yield [*test, best, "--out", f"{place}-test-{best}.json", "--against", f"{place}-test-0.json"]


def chosen(place: Path) -> str:
    """The weight of the highest accuracy on the validation text, the smallest of equals; the first where none is measured."""
    files = {w: Path(f"{place}-valid-{w}.json") for w in WEIGHTS}
    if not all(file.exists() for file in files.values()):
        return WEIGHTS[0]
    found = {w: json.loads(file.read_text())["tasks"]["continuation_choice"] for w, file in files.items()}
    return max(WEIGHTS, key=lambda w: (found[w]["metrics"]["acc"]["value"], -float(w)))


def markov(data: Path, into: Path) -> Iterator[Command]:
    for seed in map(str, range(6)):
        yield [
            "task",
            "speed",
            "--into",
            f"{into / 'markov'}-{seed}",
            "--source",
            "markov",
            "--seed",
            seed,
            *MARKOV.split(),
        ]


def shift(data: Path, into: Path) -> Iterator[Command]:
    flags = ["--seeds", "4", "--steps", "75,150,300,600,1200", "--families", "ar,mdlm"]
    for before, after in SPLITS:
        years = ["--before", f"{before}", "--after", f"{after}"]
        yield ["task", "shift", "--into", f"{into}/shift-{before}-{after}", "--data", books(data)[1], *years, *flags]


def lengths(data: Path, into: Path) -> Iterator[Command]:
    yield from study("random-length", data, into)
    for run in sorted((into / "random-length" / "runs").glob("*")):
        for length in ("8", "16", "32", "64", "128"):
            flags = ["--data", books(data)[3], "--length", length, "--rows", "512", "--draws", "4"]
            yield ["eval", f"{run}", *flags, "--out", f"{into / 'random-length' / run.name}-{length}.json"]


def methods(data: Path, into: Path) -> Iterator[Command]:
    yield from study("methods", data, into, "fit")


def low_variance(data: Path, into: Path) -> Iterator[Command]:
    yield from study("low-variance", data, into, "fit --reference mdlm")


def reversal(data: Path, into: Path) -> Iterator[Command]:
    yield ["task", "reversal", "--into", f"{into / 'reversal'}"]


def repeats(data: Path, into: Path) -> Iterator[Command]:
    place = into / "repeats"
    files = ["--json", f"{place / 'data-limited.json'}", "--figure", f"{place / 'data-limited.svg'}"]
    yield ["benchmarks/data_limited.py", "--data-dir", f"{data}", "--into", f"{place}", *files]


Rows = Callable[[Path, Path], Iterator[Command]]
ROWS: dict[str, Rows] = dict.fromkeys(("B1", "B2", "B3", "B5", "S1"), grid) | {
    "B4": low_variance, "B6": frontier, "B7": puzzles, "S2": guidance, "S3": reversal, "S4": markov, "S5": shift,
    "S8": lengths, "M1": methods, "M2": methods, "M3": repeats,
}  # fmt: skip
HOURS = {grid: 5.6, frontier: 1.0, puzzles: 1.0, guidance: 2.0, reversal: 0.1, markov: 1.5, shift: 1.2, lengths: 0.4}
HOURS |= {methods: 0.6, low_variance: 3.0, repeats: 1.0}  # of one core


def complete(command: Command) -> Command:
    """For `subprocess`; what is named as of benchmarks/ stands beside this script."""
    beside = [
        str(Path(__file__).parent / Path(part).name) if part.startswith("benchmarks/") else part for part in command
    ]
    return (
        [sys.executable, *beside]
        if command[0].startswith("benchmarks/")
        else [sys.executable, "-m", "redraft", *beside]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=sorted(ROWS), help="of docs/results/claims.md")
    parser.add_argument("--data-dir", type=Path, required=True, help="the public data")
    parser.add_argument("--into", type=Path, required=True, help="folder of studies, tasks and scores")
    parser.add_argument("--dry", action="store_true", help="print the commands alone")
    options = parser.parse_args()
    rows = ROWS[options.row]
    print(f"{options.row}: about {HOURS[rows]:g} hours of one core.", file=sys.stderr)
    options.into.mkdir(parents=True, exist_ok=True)
    for command in rows(options.data_dir, options.into):
        print("python" if command[0].startswith("benchmarks/") else "redraft", shlex.join(command), flush=True)
        there = "--out" in command and Path(command[command.index("--out") + 1]).exists()
        if not options.dry and not there:
            subprocess.run(complete(command), check=True)


if __name__ == "__main__":
    main()
