"""GSM8K after fine-tuning on equation traces: SMDM's task (arXiv:2410.18514, section 5; their 1.1B MDM reaches 58.5 %).

Each trained model is fine-tuned on question and trace (the completion alone is noised and paid for), then writes a completion
of each test question by its own sampler; the last `#### number` is its answer. Small models score near zero: the share of
well-formed answers and of equations that hold says how far they came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.evaluation.compute import AUTO, Compute
from redraft.files import make_folder, read_json, write_text
from redraft.tasks import gsm8k_answers
from redraft.tasks.intervals import wilson
from redraft.tasks.runs import Job, job, kept

TRAIN: dict[str, Any] = {"batch": 16, "lr": 1e-3, "warmup": 0.05, "threads": 1, "save_every": 100}


@dataclass(frozen=True)
class GSM8K:
    """`starts`: by name, what a run that starts from a model takes over from it (a table of its settings). `longest`: tokens
    of a question with its trace; longer ones are left out, of the tests too, and counted."""

    into: Path
    starts: dict[str, dict[str, Any]]
    train: Path
    test: Path
    steps: int = 300
    longest: int = 0
    limit: int = 200
    sampling_steps: int = 64
    temperature: float = 0.0
    over: dict[str, Any] | None = None
    compute: Compute = AUTO

    def jobs(self) -> list[Job]:
        data = written(self.train, self.into / "data")
        out = []
        for name, start in self.starts.items():
            length = self.longest or start["data"]["length"]
            settings = {
                "budget": {"steps": self.steps},
                "data": {**start["data"], **data, "length": length, "eos": "fill"},
            }
            table = {**start, **settings, "train": {**TRAIN, **start.get("train", {})}}
            out.append(job(name, table, self.over or {}, self.into / "runs"))
        return out

    def measure(self) -> Iterator[dict[str, Any]]:
        for done in self.jobs():
            name = f"gsm8k-{self.limit}-{self.sampling_steps}-{self.temperature:g}.json"
            yield kept(done.folder / name, partial(self.asked, done))

    def asked(self, done: Job) -> dict[str, Any]:
        from redraft.tasks.fill import filled, hole

        model, length = self.compute.load(done.folder), done.config.data.length
        all_problems = list(gsm8k_answers.problems(self.test))
        fitting = [p for p in all_problems if _tokens(model, p) <= length]
        some = fitting
        if len(fitting) > self.limit:
            some = [fitting[i * len(fitting) // self.limit] for i in range(self.limit)]
        if not some:
            raise UserError(
                f"no test question with its trace fits into rows of {length} tokens: give a larger --longest"
            )
        holes = [hole(model.tokenizer, gsm8k_answers.as_prompt(p)) for p in some]
        texts = filled(model, holes, length, self.sampling_steps, batch=32, temperature=self.temperature)
        return _scored(some, texts) | {
            "model": done.label, "family": model.family.name, "skipped": len(all_problems) - len(fitting),
            "record": _kept(read_json(done.folder / "record.json")), **self.compute.record(model),
        }  # fmt: skip


def _tokens(model: Any, problem: gsm8k_answers.Problem) -> int:
    parts = (gsm8k_answers.as_prompt(problem), gsm8k_answers.completion(problem))
    return sum(len(model.tokenizer.encode(part)) for part in parts) + 1


def _scored(some: Sequence[gsm8k_answers.Problem], texts: Sequence[str]) -> dict[str, Any]:
    right = sum(gsm8k_answers.is_right(text, p.answer) for p, text in zip(some, texts, strict=True))
    formed = sum(gsm8k_answers.final_answer(text) is not None for text in texts)
    found = [gsm8k_answers.equations(text) for text in texts]
    examples = [{"question": p.question, "right": p.answer, "text": text} for p, text in list(zip(some, texts))[:5]]
    return {
        "asked": len(some), "right": right, "formed": formed, "equations": sum(e.said for e in found),
        "hold": sum(e.hold for e in found), "examples": examples,
    }  # fmt: skip


def _kept(record: dict[str, Any]) -> dict[str, Any]:
    keep = ("params", "steps", "tokens", "flops", "loss", "loss_se", "loss_kind", "data")
    return {key: record[key] for key in keep}


def written(train: Path, folder: Path) -> dict[str, Any]:
    """The traces to train on, a file named after its content; the data settings that read it."""
    text = "".join(problem.trace + "\n" for problem in gsm8k_answers.problems(train) if "||" not in problem.question)
    path = folder / f"traces-{sha256(text.encode()).hexdigest()[:12]}.txt"
    make_folder(folder)
    if not path.exists():
        write_text(path, text)
    return {"source": str(path), "format": "traces", "template": "whole"}


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    from redraft.tasks.table import table

    head = ["model", "family", "loss, held out", "asked", "right", "accuracy", "with an answer", "equations that hold"]
    body = [
        [
            r["model"], r["family"], f"{r['record']['loss']:.3f} ({r['record']['loss_kind']})",
            f"{r['asked']}", f"{r['right']}",
            wilson(r["right"], r["asked"]).text(3), f"{r['formed']}",
            f"{r['hold']} of {r['equations']}",
        ]
        for r in rows
    ]  # fmt: skip
    return table(head, body)
