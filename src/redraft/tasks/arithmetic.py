"""Long arithmetic as text: `4 7 + 8 5 = 1 3 2`, asked up to the sign of equality. By length, so that one sees
where it breaks.

Left to right, the first digit of a sum hangs on all its carries; a model that may write in any order can begin at the end.
With digits written lowest first (`order` reversed) the natural order is left to right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from redraft.errors import UserError, unknown
from redraft.evaluation.compute import AUTO, Compute
from redraft.files import make_folder, read_json, write_json, write_text
from redraft.tasks.gsm8k_answers import prompts_line
from redraft.tasks.intervals import wilson
from redraft.tasks.runs import Job, job
from redraft.tasks.word_tokenizer import word_level

ORDERS, OPERATIONS = ("highest_first", "lowest_first"), ("+", "*")
ANSWERS = "arithmetic.json"
BASE: dict[str, Any] = {
    "network": {"block": "llama", "depth": 2, "heads": 4, "width": 64},
    "data": {"format": "prompts", "eos": "fill"},
    "train": {
        "batch": 64,
        "lr": 3e-3,
        "warmup": 0.05,
        "precision": "float32",
        "threads": 1,
        "save_every": 500,
    },
    "evaluate": {"rows": 128, "draws": 4},
}


@dataclass(frozen=True)
class Arithmetic:
    """Numbers of 1 to `digits` digits; `asked` test sums of each length, none of which is trained on."""

    into: Path
    families: tuple[str, ...] = ("ar", "mdlm", "duo", "esolm")
    seeds: int = 1
    first: int = 0
    training: int = 1500
    digits: int = 4
    examples: int = 20000
    asked: int = 100
    operation: str = "+"
    order: str = "highest_first"
    over: dict[str, Any] | None = None
    compute: Compute = AUTO

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise unknown("order of digits", self.order, ORDERS)
        if self.digits < 1:
            raise UserError(f"--digits must be at least 1, got {self.digits}")
        if self.operation not in OPERATIONS:
            raise unknown("operation", self.operation, OPERATIONS)

    @property
    def length(self) -> int:
        """Tokens of the longest sum, with one end of text."""
        return 4 * self.digits + 4 if self.operation == "*" else 3 * self.digits + 4

    def jobs(self) -> list[Job]:
        out = []
        for seed in range(self.first, self.first + self.seeds):
            data = self.written(seed)
            for family in self.families:
                settings = {"seed": seed, "family": family, "budget": {"steps": self.training}}
                base = {**BASE, **settings, "data": {**BASE["data"], **data, "length": self.length}}
                out.append(job(f"{family}-s{seed}", base, self.over or {}, self.into / "runs"))
        return out

    def world(self, seed: int) -> tuple[list[tuple[int, int]], dict[int, list[tuple[int, int]]]]:
        """Pairs to train on, of lengths equally often, and test pairs by the length of their longer number."""
        rng = random.Random(f"arithmetic {seed}")
        tests: dict[int, list[tuple[int, int]]] = {}
        for n in range(1, self.digits + 1):
            space = 10**n
            # Of one digit there are a hundred sums: at most a tenth of a length's sums are kept for the tests.
            want = min(self.asked, space * space // 10)
            found: dict[tuple[int, int], None] = {}
            while len(found) < want:
                found[self.pair(rng, n)] = None
            tests[n] = list(found)
        held_out = {pair for pairs in tests.values() for pair in pairs}
        train: list[tuple[int, int]] = []
        while len(train) < self.examples:
            pair = self.pair(rng, rng.randint(1, self.digits))
            if pair not in held_out:
                train.append(pair)
        return train, tests

    def pair(self, rng: random.Random, n: int) -> tuple[int, int]:
        """Two numbers, the longer of `n` digits."""
        low = 10 ** (n - 1) if n > 1 else 0
        pair = [rng.randrange(low, 10**n), rng.randrange(0, 10**n)]
        rng.shuffle(pair)
        return pair[0], pair[1]

    def text(self, a: int, b: int) -> tuple[str, str]:
        """Prompt and completion, a token a digit."""
        value = a + b if self.operation == "+" else a * b
        return f"{self.digits_of(a)} {self.operation} {self.digits_of(b)} =", f" {self.digits_of(value)}"

    def digits_of(self, value: int) -> str:
        return " ".join(str(value) if self.order == "highest_first" else reversed(str(value)))

    def written(self, seed: int) -> dict[str, Any]:
        train, tests = self.world(seed)
        learned = "".join(prompts_line(*self.text(*pair)) for pair in train)
        held_out = "".join(prompts_line(*self.text(*pair)) for pairs in tests.values() for pair in pairs)
        place = self.into / "data" / sha256((learned + held_out).encode()).hexdigest()[:12]
        make_folder(place)
        files = {"learned.jsonl": learned, "held_out.jsonl": held_out, "tokenizer.json": word_level([f"{_ALL} + * ="])}
        for name, text in files.items():
            if not (place / name).exists():
                write_text(place / name, text)
        names = {"source": "learned.jsonl", "validation": "held_out.jsonl", "tokenizer": "tokenizer.json"}
        return {key: str(place / name) for key, name in names.items()}

    def measure(self) -> Iterator[dict[str, Any]]:
        for done in self.jobs():
            path = done.folder / ANSWERS
            if not path.exists():
                write_json(path, self.answers(done))
            yield read_json(path)

    def answers(self, done: Job) -> dict[str, Any]:
        from redraft.tasks.fill import filled, hole

        model, record = self.compute.load(done.folder), read_json(done.folder / "record.json")
        by_length = []
        for n, pairs in self.world(done.config.seed)[1].items():
            asked = [self.text(*pair) for pair in pairs]
            texts = filled(model, [hole(model.tokenizer, prompt) for prompt, _ in asked], self.length, 2 * self.length)
            right = sum(text.split() == answer.split() for text, (_, answer) in zip(texts, asked, strict=True))
            by_length.append({"digits": n, "asked": len(pairs), "right": right})
        keep = ("family", "seed", "steps", "params", "flops", "loss", "loss_kind")
        return {key: record[key] for key in keep} | {"by_length": by_length} | self.compute.record(model)


_ALL = " ".join("0123456789")


def lines(runs: Sequence[dict[str, Any]]) -> list[str]:
    """A row a family: the share right of each length, over seeds."""
    from redraft.tasks.table import table

    lengths = [row["digits"] for row in runs[0]["by_length"]]
    body = []
    for family in dict.fromkeys(run["family"] for run in runs):
        some = [run["by_length"] for run in runs if run["family"] == family]
        cells = []
        for i in range(len(lengths)):
            cells.append(wilson(sum(r[i]["right"] for r in some), sum(r[i]["asked"] for r in some)).text())
        body.append([family, *cells])
    return table(["family", *(f"{n} digits" if n > 1 else "1 digit" for n in lengths)], body)
