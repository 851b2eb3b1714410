"""Tasks under one protocol for every family: those of "Scaling up Masked Diffusion Models on Text" (arXiv:2410.18514),
and puzzles that a small model can learn.

redraft task reversal   --into F                        the reversal curse in miniature: 4 families, 3 seeds, twice
redraft task reversal   --into F --original FOLDER      on the original files (bytes)
redraft task gsm8k      --into F --from RUN RUN ... --train F --test F      fine-tune on equation traces, then answer
redraft task shift      --into F --data "books/*" --before 1900 --after 1920     train on older documents, read newer ones
redraft task shift      --into F --data OLDER --newer NEWER                      or two corpora
redraft task arithmetic --into F --digits 4 --order lowest_first
redraft task graphs     --into F --paths 2 --edges 4     which path leads to the goal? Next-token prediction fails
redraft task sudoku     --into F --side 4 --blanks 10
redraft task lists      --into F --sampling-steps 1,2,4,8,16    copy, reverse, sort, shuffle, by steps of parallel decoding
redraft task wordproblems --into F --chain 4             templates of one to four steps, answered with the chain
redraft task ranks      --into F --from G S L            of finished puzzles: does a lower loss mean more right answers?
redraft task speed      --into F --source FOLDER        time and quality on text of known entropy (llama2.c's stories260K)
redraft task speed      --into F --source markov        or a Markov chain, which a small model learns soon

The same command continues an interrupted task. Every run of a task is an ordinary run folder. Any key of the runs can be set
by a dotted flag (redraft list keys).
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from redraft.commands import Part, device_flags
from redraft.commands.task_puzzles import PUZZLES, puzzle_arguments, puzzle_of
from redraft.display import Line, duration, emit, quantity
from redraft.errors import UserError, require, unknown
from redraft.numbers import WIDEST, real, seed, several, whole

OVERRIDES = True
PUZZLES_SAID = "|".join(PUZZLES)
TASKS = ("reversal", "gsm8k", "shift", "speed", *PUZZLES, "ranks")
KEYS = "\n\nThe same command continues. Any key of the runs can be set by a dotted flag (redraft list keys)."
EACH = ("into", "steps", "workers", "device", "precision", "json")
MANY = (*EACH, "families", "seeds", "first_seed")
PUZZLE = (*MANY, "examples", "asked", "sampling_steps", "figures")
PARTS = {
    "reversal": Part(
        "The reversal curse in miniature: names and descriptions, learned in one direction and asked for in the other."
        + KEYS,
        (*MANY, "figures", "people", "original"),
    ),
    "gsm8k": Part(
        "Fine-tune models on equation traces, then answer questions." + KEYS,
        (*EACH, "starts", "train", "test", "limit", "longest", "temperature", "sampling_steps"),
    ),
    "shift": Part(
        "Train on older documents, read newer ones: of one corpus with years, or of two corpora." + KEYS,
        (*MANY, "data", "newer", "before", "after"),
    ),
    "speed": Part(
        "Time and quality on text of known entropy (llama2.c's stories260K)." + KEYS,
        (*EACH, "families", "figures", "sampling_steps", "source", "rounds"),
    ),
    "ranks": Part(
        "Of finished puzzles: the rank correlation of loss and right answers, across families and within each.",
        ("into", "starts", "json"),
        says={"starts": "folders of finished puzzles"},
    ),
    **{name: Part(text + KEYS, (*PUZZLE, *flags)) for name, (text, *flags) in PUZZLES.items()},
}


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("task", help=", ".join(TASKS))
    parser.add_argument("--into", required=True, type=Path, help="folder of the task: data, runs and the record")
    parser.add_argument("--families", default="ar,mdlm,duo,esolm", help="which, parted by commas")
    parser.add_argument("--seeds", type=whole(1, WIDEST), help="how many (reversal 3, shift 2, puzzles 1)")
    parser.add_argument(
        "--first-seed", type=seed, default=1, help="the first of them (reversal was tuned on 0, 1000 and 1001)"
    )
    parser.add_argument(
        "--steps", type=several(whole()), help="of training: one number, or several parted by commas (reversal, shift)"
    )
    parser.add_argument(
        "--workers", type=whole(1, WIDEST), help="runs at a time, a thread each; as many as cores if left out"
    )
    device_flags.arguments(parser, train=True)
    parser.add_argument(
        "--figures", type=Path, metavar="FOLDER", help="save a figure here as SVG (reversal, speed, puzzles)"
    )
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument("--people", type=whole(1, WIDEST), default=20, help="reversal: of each of the three groups")
    parser.add_argument("--original", type=Path, help="reversal: folder of the original files")
    parser.add_argument(
        "--from", dest="starts", nargs="+", type=Path, default=[], help="gsm8k: trained models to fine-tune"
    )
    parser.add_argument("--train", type=Path, help="gsm8k: traces, or GSM8K's own .jsonl")
    parser.add_argument("--test", type=Path, help="gsm8k: the same, to answer")
    parser.add_argument("--limit", type=whole(), default=200, help="gsm8k: questions to answer, evenly spread")
    parser.add_argument(
        "--longest",
        type=whole(0, WIDEST),
        default=0,
        help="gsm8k: tokens of question and trace; as trained if left out",
    )
    parser.add_argument("--temperature", type=real(0, 1e6), default=0.0, help="gsm8k: of sampling; 0 is greedy")
    parser.add_argument(
        "--sampling-steps",
        type=several(whole(1, WIDEST)),
        help="of an answer: gsm8k 64; speed 4,8,16,32,64; puzzles as many as tokens",
    )
    parser.add_argument("--data", help="shift: documents with a year, or the older corpus")
    parser.add_argument("--newer", help="shift: the newer corpus")
    parser.add_argument("--before", type=whole(-9999, 9999), help="shift: older documents are from before this year")
    parser.add_argument("--after", type=whole(-9999, 9999), help="shift: newer documents are from this year or later")
    parser.add_argument("--digits", type=whole(1, 100), default=4, help="arithmetic: of the longest numbers")
    parser.add_argument("--operation", default="+", help="arithmetic: + or *")
    parser.add_argument("--order", default="highest_first", help="arithmetic: of digits, highest_first or lowest_first")
    puzzle_arguments(parser)
    parser.add_argument("--source", type=Path, help="speed: folder of stories260K.bin, or markov")
    parser.add_argument(
        "--rounds", type=whole(1, WIDEST), default=8, help="speed: how often each setting is timed, taking turns"
    )


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    tasks = {"reversal": reversal, "gsm8k": gsm8k, "shift": shift, "speed": speed, "ranks": ranks}
    tasks |= dict.fromkeys(PUZZLES, puzzle)
    if options.task not in tasks:
        raise unknown("task", options.task, TASKS)
    from redraft.config import merge

    check(options, overrides)
    options.compute = device_flags.compute(options)
    tasks[options.task](options, merge(overrides, device_flags.trained(options)))


def check(options: Namespace, overrides: dict[str, Any]) -> None:
    """What is wrong and needs no torch to be seen: names, keys of the runs, paths."""
    from redraft.config import RunConfig, merge, validated
    from redraft.files import whereabouts
    from redraft.hub.config import there
    from redraft.text.sources.corpus import check_named

    if options.figures is not None:
        require("--figures", "figures", "altair", "vl_convert")
    validated(RunConfig, merge({"family": _families(options)[0]}, overrides))
    if options.task in PUZZLES:
        puzzle_of(options)
    for folder in options.starts:
        there(folder)
    source = None if str(options.source) == "markov" else options.source
    for path in (options.original, options.train, options.test, source):
        if path is not None and not path.exists():
            raise UserError(f"no such file or folder: {path}{whereabouts(path)}")
    check_named(options.data)
    check_named(options.newer)


def reversal(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.tasks import reversal as task

    asked = task.Reversal(
        options.into, _families(options), options.seeds or 3, options.first_seed, tuple(options.steps or (600, 1800)),
        options.people, options.original, overrides, options.compute,
    )  # fmt: skip
    train(asked.jobs(), options)
    runs = list(asked.measure())
    rows = task.summary(runs)
    draw(options, "reversal_figure", rows)
    close(options, {"summary": rows, "runs": runs}, task.lines(rows))


def gsm8k(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.commands.starting import start_table
    from redraft.tasks import gsm8k as task

    _need(options, "starts", "train", "test")
    starts = {folder.name: start_table(folder) for folder in options.starts}
    asked = task.GSM8K(
        options.into, starts, options.train, options.test, _one(options.steps, 300), options.longest, options.limit,
        _one(options.sampling_steps, 64), options.temperature, overrides, options.compute,
    )  # fmt: skip
    train(asked.jobs(), options)
    rows = list(asked.measure())
    close(options, {"rows": rows}, task.lines(rows))


def shift(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.tasks import shift as task
    from redraft.text.sources.corpus import find_files
    from redraft.text.sources.formats import ACCEPTED, is_usable

    _need(options, "data")
    older, validation, newer = options.data, None, options.newer
    if newer is None:
        _need(options, "before", "after")
        files = find_files(options.data, is_usable, ACCEPTED)
        older, validation, newer = task.by_year(files, options.before, options.after, options.into / "data")
    asked = task.Shift(
        options.into, older, newer, validation, _families(options), options.seeds or 2, options.first_seed,
        tuple(options.steps or (150, 300, 600)), overrides, options.compute,
    )  # fmt: skip
    train(asked.jobs(), options)
    runs = list(asked.measure())
    others = [name for name in _families(options) if name != "ar"]
    found = [one for name in others if (one := task.matched(runs, "ar", name))] if "ar" in _families(options) else []
    close(options, {"runs": runs, "matched": found}, task.lines(runs))


def puzzle(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.tasks.puzzles import task

    asked = task.PuzzleTask(
        options.into, puzzle_of(options), _families(options), options.seeds or 1, options.first_seed,
        tuple(options.steps or (1500,)), options.examples, options.asked, tuple(options.sampling_steps or (0,)), overrides,
        options.compute,
    )  # fmt: skip
    train(asked.jobs(), options)
    runs = list(asked.measure())
    rows = task.summary(runs)
    draw(options, "puzzle_figure", rows)
    close(options, {"summary": rows, "runs": runs}, task.lines(rows))


def ranks(options: Namespace, _: dict[str, Any]) -> None:
    from redraft.files import make_folder, read_json
    from redraft.tasks.puzzles.rank_correlation import lines, rank_correlations

    _need(options, "starts")
    runs: list[dict[str, Any]] = []
    for folder in options.starts:
        found = [name for name in PUZZLES if (folder / f"{name}.json").is_file()]
        if not found:
            raise UserError(f"{folder} holds no finished puzzle: give folders that `redraft task {PUZZLES_SAID}` wrote")
        # Runs that learned and answered the same questions are of one puzzle, in whichever folders they lie
        questions = " ".join(sorted(path.name for path in (folder / "data").glob("*"))) or str(folder)
        runs += [
            run | {"puzzle": f"{name} {questions}"}
            for name in found
            for run in read_json(folder / f"{name}.json")["runs"]
        ]
    make_folder(options.into)
    rows = rank_correlations(runs)
    close(options, {"summary": rows}, lines(rows))


def speed(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.tasks import speed as task

    _need(options, "source")
    asked = task.Speed(
        options.into, options.source, _families(options), _one(options.steps, 600), rounds=options.rounds,
        steps=tuple(options.sampling_steps or (4, 8, 16, 32, 64)), over=overrides,
        compute=options.compute,
    )  # fmt: skip
    train(asked.jobs(), options)
    found = asked.measure()
    draw(options, "speed_figure", found)
    close(options, found, task.lines(found))


def train(jobs: list[Any], options: Namespace) -> None:
    """Say what the runs will cost, then carry out what is not done."""
    from redraft.tasks.runs import carry_out_all
    from redraft.text.shards.prepare import cores

    workers = options.workers or cores()
    if not options.json:
        print(plan_sentence(jobs, workers, options.compute.device == "cpu"), flush=True)
    line, began = Line(quiet=options.json), time.monotonic()
    left = sum(not job.done for job in jobs)
    for number, job in enumerate(carry_out_all(jobs, workers), start=1):
        line.show(f"{number} of {left} runs, {duration(time.monotonic() - began)}: {job.label}", force=number == left)
    line.close()


def plan_sentence(jobs: list[Any], workers: int, timed: bool) -> str:
    """What is to be done, in one sentence. `timed`: how long too; only a CPU's rate is measured."""
    from redraft.planning.budget import plan_run
    from redraft.planning.pace import cpu_rate, seconds
    from redraft.text.tokenizers.tokenizer import load_tokenizer

    left = [job.config for job in jobs if not job.done]
    budgets = [plan_run(config, load_tokenizer(config.data.tokenizer).size) for config in left]
    if not budgets:
        return f"{len(jobs)} runs, all done."
    flops = sum(budget.flops["full"] for budget in budgets)
    at_a_time = min(workers, len(left))
    rate = cpu_rate(budgets, left[0].train.threads, at_a_time) if timed else 0.0
    time_left = f", about {duration(seconds(budgets, rate, at_a_time))}" if timed else ""
    return (
        f"{len(jobs)} runs of {min(b.params for b in budgets):,} to {max(b.params for b in budgets):,} parameters without the "
        f"input embedding, {len(left)} to do: {quantity(sum(b.steps for b in budgets))} steps, {quantity(flops, 'FLOPs')} "
        f"(everything counted){time_left} with {at_a_time} at a time."
    )


def draw(options: Namespace, figure: str, found: Any) -> None:
    """The figure of that name in `task_figures`, where one was asked for."""
    if options.figures is not None:
        from redraft.report import task_figures

        task_figures.save(getattr(task_figures, figure)(found), options.figures)


def close(options: Namespace, record: dict[str, Any], lines: list[str]) -> None:
    """Keep the record beside the runs and say it."""
    from redraft.files import write_json

    path = options.into / f"{options.task}.json"
    record = {"task": options.task, **record}
    write_json(path, record)
    emit(record) if options.json else print("\n".join([*lines, "", f"Record: {path}"]))


def _need(options: Namespace, *names: str) -> None:
    """`UserError` that names the flags which a task cannot do without."""
    flags = {"starts": "from"}
    missing = [f"--{flags.get(name, name)}" for name in names if not getattr(options, name)]
    if missing:
        raise UserError(f"`redraft task {options.task}` needs {' and '.join(missing)}")


def _families(options: Namespace) -> tuple[str, ...]:
    from redraft.registry import FAMILIES, find

    names = tuple(name.strip() for name in options.families.split(",") if name.strip())
    for name in names:
        find("family", FAMILIES, name)
    if not names:
        raise UserError("--families names no family")
    return names


def _one(numbers: list[int] | None, default: int) -> int:
    numbers = numbers or [default]
    if len(numbers) > 1:
        raise UserError(f"this task takes one number of steps, not {len(numbers)}")
    return numbers[0]
