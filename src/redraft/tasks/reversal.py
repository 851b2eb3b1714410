"""The reversal curse: a model that learned "A is B", does it know that B is A?  SMDM, arXiv:2410.18514, section 5.

Every family gets the same sentences, network, batches and steps, so the same tokens and the same FLOPs (by the ledger) too;
every token of a sentence is learned, prompts included. Answers are greedy, by each family's own sampler. All is done at
several numbers of steps: a family that needs more may be read at its best against the others at theirs, or all at the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from redraft.evaluation.compute import AUTO, Compute
from redraft.files import read_json
from redraft.tasks.intervals import Interval, wilson
from redraft.tasks.reversal_data import People, Question, generate, load, rows
from redraft.tasks.runs import Job, grid, kept, written
from redraft.tasks.word_tokenizer import word_level

KINDS = ("forward", "reversed", "infill")
ANSWERS = "answers.json"

# Chosen on the seeds 0, 1000 and 1001, which are not among those reported (1, 2, 3).
BASE: dict[str, Any] = {
    "network": {"block": "llama", "depth": 1, "heads": 4, "width": 64},
    "data": {"format": "prompts", "eos": "fill"},
    "train": {
        "batch": 64, "lr": 3e-3, "weight_decay": 1.0, "warmup": 0.05, "precision": "float32", "threads": 1, "save_every": 500,
    },
    "evaluate": {"rows": 64, "draws": 4},
}  # fmt: skip


@dataclass(frozen=True)
class Reversal:
    """`seeds` from `first` on: each makes people and weights of its own. `original`: folder of the original files."""

    into: Path
    families: tuple[str, ...] = ("ar", "mdlm", "duo", "esolm")
    seeds: int = 3
    first: int = 1
    steps: tuple[int, ...] = (600, 1800)
    people: int = 20
    original: Path | None = None
    over: dict[str, Any] | None = None
    compute: Compute = AUTO

    def jobs(self) -> list[Job]:
        """Every run. The longest come first, so that no worker is left alone with one."""
        out = []
        for seed in range(self.first, self.first + self.seeds):
            data = data_of(self.data(seed), self.into / "data", self.original is not None)
            out += grid(BASE, data, seed, self.steps, self.families, self.over or {}, self.into)
        return sorted(out, key=lambda j: -(j.config.budget.steps or 0))

    def data(self, seed: int) -> People:
        return load(self.original) if self.original is not None else generate(seed, self.people)

    def measure(self) -> Iterator[dict[str, Any]]:
        """The answers of each run, with what says whose they are; kept beside the run."""
        for done in self.jobs():
            yield kept(done.folder / ANSWERS, partial(self._asked, done))

    def _asked(self, done: Job) -> dict[str, Any]:
        return asked(done, self.data(done.config.seed), self.original is not None, self.compute)


def data_of(people: People, folder: Path, bytewise: bool) -> dict[str, Any]:
    """The files of a world, in a folder named after what is in them; the data settings that read it.

    The sentences to learn are the completions of empty prompts: all of a sentence is learned. To validate on: the tests in
    the trained order.
    """
    files = {f"{name}.jsonl": _lines(some) for name, some in rows(people).items()}
    learned = [{"prompt": "", "completion": s.text} for s in people.train]
    held_out = [
        {"prompt": "", "completion": q.before + q.answer}
        for (_, kind), questions in people.tests.items() if kind == "forward" for q in questions
    ]  # fmt: skip
    files |= {"learned.jsonl": _lines(learned), "held_out.jsonl": _lines(held_out)}
    if not bytewise:
        files["tokenizer.json"] = word_level(people.texts())
    place = written(files, folder)
    return {
        "source": str(place / "learned.jsonl"),
        "validation": str(place / "held_out.jsonl"),
        "tokenizer": "bytes" if bytewise else str(place / "tokenizer.json"),
        "length": 1 + max(len(text.encode() if bytewise else text.split()) for text in people.texts()),
    }


def _lines(some: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)


def asked(done: Job, people: People, loosely: bool, compute: Compute) -> dict[str, Any]:
    """A run's answers: of each group and kind, how many paraphrases about each person it got right, of how many."""
    model, config = compute.load(done.folder), done.config
    record = read_json(done.folder / "record.json")
    tests = []
    for (group, kind), questions in people.tests.items():
        if kind == "infill" and model.family.spare == "bos":
            continue  # left to right, what comes after a hole cannot be seen
        texts = _answers(model, questions, kind == "infill", config.data.length)
        right = [is_right(text, q.answer, loosely) for text, q in zip(texts, questions, strict=True)]
        tests.append({"group": group, "kind": kind, "people": _by_person(questions, right), "first": texts[0]})
    keep = ("family", "seed", "steps", "tokens", "flops", "params", "loss", "loss_kind")
    found = {"seconds": record["timing"]["seconds"], "tests": tests, **compute.record(model)}
    return {key: record[key] for key in keep} | found


def _answers(model: Any, questions: Sequence[Question], infill: bool, length: int) -> list[str]:
    from redraft.tasks.fill import filled, hole

    holes = [hole(model.tokenizer, q.before, q.after, q.answer if infill else None) for q in questions]
    return filled(model, holes, length, steps=2 * length)


def is_right(text: str, answer: str, loosely: bool) -> bool:
    """The same words; `loosely`, SMDM's rule for the original files: the answer is found in the text, whatever the case."""
    if not loosely:
        return text.split() == answer.split()
    return answer.strip().rstrip(".").lower() in text.lower()


def _by_person(questions: Sequence[Question], right: Sequence[bool]) -> list[list[int]]:
    """[right, asked] for each person."""
    counts: dict[int, list[int]] = {}
    for question, one in zip(questions, right, strict=True):
        count = counts.setdefault(question.person, [0, 0])
        count[0] += one
        count[1] += 1
    return [counts[person] for person in sorted(counts)]


def share(runs: Sequence[dict[str, Any]], kind: str, group: str | None = None) -> Interval | None:
    """The share right over runs (and both groups), people weighing alike; as sure as if each person were asked once."""
    people = [
        right / asked
        for run in runs for test in run["tests"] if test["kind"] == kind and group in (None, test["group"])
        for right, asked in test["people"]
    ]  # fmt: skip
    return wilson(sum(people), len(people)) if people else None


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each number of steps and family, in the order in which they come."""
    keys = dict.fromkeys((run["steps"], run["family"]) for run in sorted(runs, key=lambda run: run["steps"]))
    out = []
    for steps, family in keys:
        some = [run for run in runs if (run["steps"], run["family"]) == (steps, family)]
        row: dict[str, Any] = {"family": family, "steps": steps, "seeds": len(some), "flops": some[0]["flops"]}
        row["params"], row["seconds"] = some[0]["params"], sum(run["seconds"] for run in some) / len(some)
        for kind in KINDS:
            found = share(some, kind)
            row[kind] = asdict(found) if found else None
            row[f"{kind}_by_seed"] = [one.value for run in some if (one := share([run], kind))]
        for group in ("p2d", "d2p"):
            found = share(some, "reversed", group)
            row[f"reversed_{group}"] = found.value if found else None
        out.append(row)
    return out


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table."""
    from redraft.tasks.table import cell, table

    head = ["steps", "family", "same direction", "reversed", "of p2d", "of d2p", "infill", "reversed, by seed"]
    head += ["s a run"]
    body = [
        [
            f"{row['steps']}", row["family"], cell(row["forward"]), cell(row["reversed"]), f"{row['reversed_p2d']:.2f}",
            f"{row['reversed_d2p']:.2f}", cell(row["infill"]), " ".join(f"{v:.2f}" for v in row["reversed_by_seed"]),
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, body)
