"""Answer the questions of a FastChat file (MT-bench), and have an LLM behind a URL judge the answers, if you have one.

redraft answer runs/chat --questions question.jsonl --into answers/chat.jsonl
redraft answer runs/chat --questions question.jsonl --into answers/chat.jsonl --judge URL/v1 --judge-model NAME

Judgments lie beside the answers, in answers/chat.judgments.jsonl. Interrupted, the same command goes on after the last answer.
The key of the judge, if it wants one, is read from OPENAI_API_KEY.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from redraft.commands import device_flags
from redraft.display import Line, duration, emit, quantity
from redraft.errors import UserError
from redraft.numbers import WIDEST, real, seed, whole
from redraft.registry import SAMPLERS, find, steps_remark


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a run folder or an exported model folder")
    parser.add_argument("--questions", type=Path, required=True, help="FastChat's question.jsonl")
    parser.add_argument("--into", type=Path, required=True, help="the answer file")
    parser.add_argument("--name", help="model_id of the answers; the folder's name if left out")
    parser.add_argument("--template", default="vicuna", help="vicuna, chatml, plain or a Jinja file")
    parser.add_argument("--length", type=whole(1, WIDEST), default=1024, help="tokens of the canvas, prompt and answer")
    parser.add_argument("--steps", type=whole(1, WIDEST), help="128 if left out; for samplers that have steps")
    parser.add_argument("--temperature", type=real(0, 1e6), default=1.0)
    parser.add_argument("--top-p", type=real(0, 1, above=True), default=1.0)
    parser.add_argument("--sampler", default="")
    parser.add_argument("--turns", type=whole(1, WIDEST), default=2, help="1: as SMDM's tables")
    parser.add_argument("--limit", type=whole(), help="only the first questions")
    parser.add_argument("--seed", type=seed, default=0)
    device_flags.arguments(parser)
    parser.add_argument("--judge", help="URL of an OpenAI-style endpoint, up to /v1")
    parser.add_argument("--judge-model", help="the judge's name there")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    if bool(options.judge) != bool(options.judge_model):
        raise UserError("--judge and --judge-model go together: the URL, and the name of the model there")
    from redraft.evaluation.generation.mt_bench import How, questions

    device_flags.model(options)
    if options.sampler:
        find("sampler", SAMPLERS, options.sampler)
    asked = questions(options.questions)[: options.limit]
    if options.turns > (most := max(len(question["turns"]) for question in asked)) and options.turns != 2:
        raise UserError(f"--turns {options.turns}: the questions have at most {most}")
    given = {name: value for name in How.__dataclass_fields__ if (value := getattr(options, name)) is not None}
    how = How(**given)
    answers = _answers(options, asked, how)
    scores = _judge(options, asked, answers) if options.judge else []
    mean = sum(scores) / len(scores) if scores else None
    if options.json:
        return emit(
            {"answers": str(options.into), "questions": len(answers), "score": mean, "judge": options.judge_model}
        )
    empty = sum(not all(line["choices"][0]["turns"]) for line in answers)
    print(
        f"{len(answers)} answers in {options.into}"
        + (f", {empty} with an empty turn" if empty else "")
        + (f"; mean rating {mean:.2f} by {options.judge_model}" if mean else "")
    )
    return None


def _answers(options: Namespace, asked: list[dict[str, Any]], how: Any) -> list[dict[str, Any]]:
    from redraft.evaluation.generation.mt_bench import answer

    compute = device_flags.compute(options)
    model, name = compute.load(options.model), options.name or options.model.resolve().name
    sampler, said = options.sampler or model.family.sampler, compute.record(model)
    if told := steps_remark(sampler, options.steps):
        print(f"Note: {told}.", file=sys.stderr)
    if not options.json:
        calls = how.steps if "steps" in find("sampler", SAMPLERS, sampler).options else how.length
        texts = sum(len(question["turns"][: how.turns]) for question in asked)
        passes = quantity(texts * calls)
        print(
            f"Answering {len(asked)} questions, {texts} turns: at most {passes} passes through the network.",
            file=sys.stderr,
        )
    work = lambda question: [answer(model, name, question, how) | said]
    return _each(options.into, asked, work, options.json, "answered")


def _judge(options: Namespace, asked: list[dict[str, Any]], answers: list[dict[str, Any]]) -> list[float]:
    from redraft.evaluation.generation.mt_bench import judged

    by_id, key = {line["question_id"]: line for line in answers}, os.environ.get("OPENAI_API_KEY", "")
    path = options.into.with_suffix(".judgments.jsonl")
    verdicts = _each(
        path, asked,
        lambda q: list(judged(options.judge, options.judge_model, key, q, by_id[q["question_id"]])), options.json, "judged",
    )  # fmt: skip
    return [line["score"] for line in verdicts if line["score"] >= 0]


def _each(path: Path, asked: list[dict[str, Any]], work: Any, quiet: bool, done_word: str) -> list[dict[str, Any]]:
    """The lines of `path`: those of an earlier, interrupted try are kept in `name.partial`, a line for each question."""
    from redraft.files import disk, lines, make_folder, read_text

    if path.exists():
        raise UserError(f"{path} is there already: remove it, or name another file with --into")
    make_folder(path.parent)
    partial, line = path.with_name(path.name + ".partial"), Line(quiet=quiet)
    kept = [json.loads(text) for text in lines(read_text(partial)) if text.endswith("}")] if partial.exists() else []
    known, began = {entry["question_id"] for entry in kept}, time.monotonic()
    with disk(path.parent), partial.open("w") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in kept)
        file.flush()
        for number, question in enumerate(asked, 1):
            if question["question_id"] not in known:
                new = work(question)
                file.writelines(json.dumps(entry) + "\n" for entry in new)
                file.flush()
                kept += new
            gone = time.monotonic() - began
            left = duration(gone / number * (len(asked) - number))
            line.show(f"{number} of {len(asked)} questions {done_word}, {duration(gone)}, about {left} left")
    line.close()
    partial.replace(path)
    return kept
