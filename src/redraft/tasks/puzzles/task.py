"""One protocol for every puzzle: equal data, steps, network and so FLOPs for each family; greedy answers, by sampling steps.

Beside each share of right answers stands the likelihood of the right answers to the same questions, in nats per token, exact
or a bound as the family has it. Where several answers are right, no model can bring that to zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from redraft.evaluation.compute import AUTO, Compute
from redraft.files import read_json
from redraft.tasks.gsm8k_answers import prompts_line
from redraft.tasks.intervals import wilson
from redraft.tasks.puzzles.puzzle import Drawn, Puzzle, Question, drawn
from redraft.tasks.runs import Job, grid, kept, written
from redraft.tasks.table import cell, table
from redraft.tasks.word_tokenizer import word_level

BASE: dict[str, Any] = {
    "network": {"block": "llama", "depth": 2, "heads": 4, "width": 64},
    "data": {"format": "prompts", "eos": "fill"},
    "train": {
        "batch": 64, "lr": 3e-3, "warmup": 0.05, "precision": "float32", "threads": 1, "save_every": 500,
    },
    "evaluate": {"rows": 128, "draws": 4},
}  # fmt: skip
KEPT = ("family", "seed", "steps", "params", "flops", "loss", "loss_se", "loss_sampling_se", "loss_kind")


@dataclass(frozen=True)
class PuzzleTask:
    """`seeds` from `first` on, each with questions and weights of its own; `asked` questions of each group, none of which is
    among the `examples` to learn from. `training`: numbers of steps, a run each. `sampling`: numbers of steps to answer in, 0
    for one a token or more.
    """

    into: Path
    puzzle: Puzzle
    families: tuple[str, ...] = ("ar", "mdlm", "duo", "esolm")
    seeds: int = 1
    first: int = 0
    training: tuple[int, ...] = (1500,)
    examples: int = 20000
    asked: int = 100
    sampling: tuple[int, ...] = (0,)
    over: dict[str, Any] | None = None
    compute: Compute = AUTO

    def jobs(self) -> list[Job]:
        out = []
        for seed in range(self.first, self.first + self.seeds):
            data = self._written(self._drawn(seed))
            data |= {"length": self.puzzle.length}
            out += grid(BASE, data, seed, self.training, self.families, self.over or {}, self.into)
        return out

    def _drawn(self, seed: int) -> Drawn:
        return drawn(self.puzzle, seed, self.examples, self.asked)

    def _written(self, of: Drawn) -> dict[str, Any]:
        """The files of a seed, in a folder named after what is in them, and the data settings that read it."""
        tests = [question for questions in of.tests.values() for question in questions]
        files = {
            "learned.jsonl": _lines(of.train),
            "held_out.jsonl": _lines(tests),
            "tokenizer.json": word_level([self.puzzle.words]),
        }
        place = written(files, self.into / "data")
        names = {"source": "learned.jsonl", "validation": "held_out.jsonl", "tokenizer": "tokenizer.json"}
        return {key: str(place / name) for key, name in names.items()}

    def measure(self) -> Iterator[dict[str, Any]]:
        """The answers of each run, kept beside it."""
        for done in self.jobs():
            name = f"{self.puzzle.name}-{'-'.join(map(str, self.sampling))}.json"
            yield kept(done.folder / name, partial(self._answers, done))

    def _answers(self, done: Job) -> dict[str, Any]:
        model, record = self.compute.load(done.folder), read_json(done.folder / "record.json")
        answers = [
            {"group": group, "sampling_steps": steps, "asked": len(questions), "right": self._right(model, questions, steps)}
            for steps in self.sampling
            for group, questions in self._drawn(done.config.seed).tests.items()
        ]  # fmt: skip
        return {key: record.get(key) for key in KEPT} | {"answers": answers} | self.compute.record(model)

    def _right(self, model: Any, questions: Sequence[Question], steps: int) -> int:
        from redraft.tasks.fill import filled, hole

        length = self.puzzle.length
        holes = [hole(model.tokenizer, question.prompt) for question in questions]
        texts = filled(model, holes, length, steps or 2 * length)
        return sum(self.puzzle.is_right(q, text) for q, text in zip(questions, texts, strict=True))


def _lines(questions: Sequence[Question]) -> str:
    return "".join(prompts_line(question.prompt, f" {question.answer}") for question in questions)


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each family, training steps, sampling steps and group: right answers over seeds, and the loss."""
    out: list[dict[str, Any]] = []
    for steps, family in dict.fromkeys((run["steps"], run["family"]) for run in runs):
        some = [run for run in runs if (run["steps"], run["family"]) == (steps, family)]
        loss = sum(run["loss"] for run in some) / len(some)
        for cells in zip(*(run["answers"] for run in some), strict=True):
            found = wilson(sum(c["right"] for c in cells), sum(c["asked"] for c in cells))
            of = {key: cells[0][key] for key in ("group", "sampling_steps")}
            same = {"seeds": len(some), "loss": loss, "loss_kind": some[0]["loss_kind"]}
            out.append({"family": family, "steps": steps, **of, "right": asdict(found), **same})
    return out


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A row a family and numbers of steps: the share right of each group, then the loss."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    body = []
    for steps, family, sampled in dict.fromkeys((row["steps"], row["family"], row["sampling_steps"]) for row in rows):
        mine = [row for row in rows if (row["steps"], row["family"], row["sampling_steps"]) == (steps, family, sampled)]
        shares = [cell(row["right"]) for row in mine]
        loss = f"{mine[0]['loss']:.3f} ({mine[0]['loss_kind']})"
        body.append([family, str(steps), str(sampled or "as many as tokens"), *shares, loss])
    return table(["family", "training steps", "sampling steps", *groups, "nats/token"], body)
