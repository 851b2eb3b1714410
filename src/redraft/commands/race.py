"""Models side by side in numbers: latency of a text alone, tokens/s of batches, and quality at one entropy under an evaluator.

redraft race runs/ar runs/mdlm --steps 16,64
redraft race runs/ar runs/mdlm runs/duo --prompts asked.txt --figure race.svg
redraft race runs/ar small=runs/mdlm --evaluator models/gpt2            (quality at the entropy of held-out text)
redraft race runs/mdlm remasked=runs/mdlm --sampler remasked=psi                        (samplers side by side)

Run it when nothing else runs on the machine: it takes times. `redraft serve` shows the same models writing.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.commands import device_flags
from redraft.commands.named import HELP, named
from redraft.display import Left, Line, duration, emit, quantity, tokenising
from redraft.errors import ASKED, UserError
from redraft.numbers import WIDEST, real, seed, several, whole
from redraft.registry import SAMPLERS, find

if TYPE_CHECKING:
    from torch import Tensor

    from redraft.evaluation.compute import Compute
    from redraft.frontier.race import Lap, Racer
    from redraft.frontier.race_quality import Bench, Judged

FIGURES = (".svg", ".png", ".pdf")


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help=HELP)
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help='a prompt a line, or {"prompt": ...} as .jsonl; none if left out'
    )
    parser.add_argument("--texts", type=whole(2, WIDEST), default=32, help="samples of each setting (default: 32)")
    parser.add_argument("--batch", type=whole(1, WIDEST), default=8, help="texts written at once (default: 8)")
    parser.add_argument(
        "--alone", type=whole(1, WIDEST), default=20, help="texts that are timed one at a time (default: 20)"
    )
    parser.add_argument(
        "--length", type=whole(2, WIDEST), help="tokens of a canvas; the shortest row in training if left out"
    )
    parser.add_argument("--steps", type=several(whole(1, WIDEST)), default=[16, 64], help="16,64 if left out")
    parser.add_argument(
        "--sampler",
        action="append",
        default=[],
        metavar="[NAME=]SAMPLER",
        help="of one model or of all; may be repeated",
    )
    parser.add_argument("--temperature", type=real(0, 1e6), default=1.0, help="at which times are taken")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--evaluator", metavar="MODEL", help="what scores the texts: folder, .gguf, .bin or hub name")
    parser.add_argument(
        "--temperatures", type=several(real(0, 1e6)), default=[0.9, 0.8],
        help="a sweep, which goes on until a curve has the entropy (with --evaluator; 0.9,0.8 if left out)",
    )  # fmt: skip
    parser.add_argument(
        "--entropy",
        type=real(0, 1e6, above=True),
        help="nats at which models are compared; held-out text's if left out",
    )
    parser.add_argument(
        "--text", metavar="SOURCE", help="held-out text; the validation split of the first model's if left out"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="as .svg, .png or .pdf")
    device_flags.arguments(parser, samples=True)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    places = named(options.models)
    samplers, prompts = check(options, list(places)), prompts_of(options)
    compute = device_flags.compute(options)
    racers = racers_of(options, places, samplers, prompts, compute)
    bench = bench_of(options, racers, places, compute)
    try:
        ran, found = raced(options, racers, bench)
    except KeyboardInterrupt:
        print("redraft: interrupted; nothing was written, and the same command begins anew", file=sys.stderr)
        sys.exit(ASKED)
    if options.figure:
        draw(options.figure, ran, found)
    emit(as_json(ran, found, compute)) if options.json else print("\n".join(table(ran, found)))


def raced(options: Namespace, racers: list[Racer], bench: Bench | None) -> tuple[list[Lap], Judged | None]:
    """First what it costs, then how much is left of it."""
    from redraft.frontier.race import expected, laps, work
    from redraft.frontier.race_quality import judged

    sweeps = len(set(options.temperatures) - {options.temperature}) if bench else 0
    pieces, line = work(racers, sweeps), Line(quiet=options.json)
    if not options.json:
        print(cost_sentence(racers, pieces, expected(racers, sweeps)), file=sys.stderr, flush=True)
    left, count = Left(pieces, "texts and batches"), 0

    def done() -> None:
        nonlocal count
        count += 1
        line.show(left(min(count, pieces)))

    try:
        ran = list(laps(racers, options.temperature, done))
        return ran, judged(ran, options.temperature, bench, done) if bench else None
    finally:
        line.close()


def check(options: Namespace, names: list[str]) -> dict[str, str]:
    """The sampler of each model, or what is wrong, before torch is loaded."""
    chosen = dict.fromkeys(names, "")
    for given in options.sampler:
        name, equals, sampler = given.rpartition("=")
        find("sampler", SAMPLERS, sampler)
        if equals and name not in names:
            raise UserError(f"--sampler {given}: no model is called {name!r}, but {', '.join(names)}")
        chosen |= {name: sampler} if equals else dict.fromkeys(names, sampler)
    if options.figure and options.figure.suffix.lower() not in FIGURES:
        raise UserError(f"--figure {options.figure}: its name must end in {', '.join(FIGURES[:-1])} or {FIGURES[-1]}")
    if options.figure and not options.figure.absolute().parent.is_dir():
        raise UserError(f"--figure {options.figure}: there is no folder {options.figure.absolute().parent}")
    if not options.evaluator and (options.text or options.entropy):
        raise UserError(f"--{'text' if options.text else 'entropy'} is for quality: name a model by --evaluator too")
    return chosen


def prompts_of(options: Namespace) -> tuple[str, ...]:
    from redraft.commands.sample_many import read

    if options.prompts is None:
        return ("",)
    found = list(read(options.prompts))
    if not found:
        raise UserError(f"{options.prompts} holds no prompts")
    if stray := next((one for one in found if one.suffix or one.tokens is not None), None):
        raise UserError(f"{stray.where}: a race continues prompts to --length, so no 'suffix' and no 'max_tokens'")
    return tuple(one.prompt for one in found)


def racers_of(
    options: Namespace, places: dict[str, Path], samplers: dict[str, str], prompts: tuple[str, ...], compute: Compute
) -> list[Racer]:
    """The models, loaded; their samplers and prompts fit them."""
    from redraft.frontier.race import Course, Racer

    models = {name: compute.load(folder) for name, folder in places.items()}
    length = options.length or min(model.length for model in models.values())
    course = Course(
        prompts, length, options.texts, options.batch, min(options.alone, options.texts), options.seed, compute.compiled
    )
    racers = [Racer(name, model, samplers[name], tuple(options.steps), course) for name, model in models.items()]
    for racer in racers:
        racer.model.sampler(racer.sampler, options.steps[0])
        _ = racer.canvas([0])
        if told := racer.model.beyond(length):
            print(f"Note: {racer.name}: {told}.", file=sys.stderr)
    if len({racer.model.tokenizer.fingerprint for racer in racers}) > 1:
        told = "the models have several tokenizers, so a token of one is not a token of another"
        if options.evaluator:
            raise UserError(
                f"{told}: quality at one entropy is for models that share a tokenizer; leave --evaluator out"
            )
        print(f"Note: {told}.", file=sys.stderr)
    return racers


def bench_of(options: Namespace, racers: list[Racer], places: dict[str, Path], compute: Compute) -> Bench | None:
    if not options.evaluator:
        return None
    from redraft.evaluation.generation.evaluator_files import load_evaluator
    from redraft.frontier.race_quality import Bench

    evaluator = load_evaluator(options.evaluator, device=compute.device)
    needed = options.entropy is None or options.text is not None
    held_out = rows(options, racers[0], next(iter(places.values()))) if needed else []
    return Bench(evaluator, held_out, tuple(options.temperatures), options.entropy)


def rows(options: Namespace, racer: Racer, folder: Path) -> list[Tensor]:
    """Held-out text, four rows for each sample, as long as what is written of it."""
    import torch

    from redraft.text.shards.packing import ordered_windows
    from redraft.text.shards.prepare import prepare_cached

    record = racer.model.record.get("data", {})
    own = options.text is None
    if own and (not record.get("source") or record.get("format", "text") != "text"):
        raise UserError(f"{folder} does not say what text it was trained on: give --text SOURCE, or --entropy NATS")
    source, validation = (record["source"], record.get("validation")) if own else (options.text, None)
    corpus = prepare_cached(source, racer.model.tokenizer, validation=validation, progress=tokenising(options.json))
    course, ids = racer.course, racer.prompts
    count = 4 * course.texts
    windows = torch.from_numpy(ordered_windows(corpus.split("validation"), course.length, count))
    return [row[len(ids[at % len(ids)]) :] for at, row in enumerate(windows)]


def cost_sentence(racers: list[Racer], pieces: int, seconds: float) -> str:
    course = racers[0].course
    each = ", ".join(f"{r.name} ({r.model.family.name}, {' and '.join(map(str, r.settings))} steps)" for r in racers)
    return (
        f"Racing {each}: {course.alone} texts alone and {course.texts} in batches of {course.batch} at each, on canvases of "
        f"{course.length} tokens, {pieces} pieces of work, about {duration(seconds)}"
    )


def draw(path: Path, ran: list[Lap], found: Judged | None) -> None:
    from redraft.report.race_figure import race_figure

    race_figure(ran, found.matching if found else None).save(path)


def table(ran: list[Lap], found: Judged | None) -> list[str]:
    """A line a setting under a heading, and what the numbers mean."""
    course, matching = ran[0].racer.course, found.matching if found else None
    heading = ["model", "steps", "calls", "s p50", "p90", "p99", "tokens/s p50", "p90", "p99"]
    lines = [[*heading, *(["nats/token (95 %)", "at T"] if matching else [])]]
    lines += [_cells(lap, found) for lap in ran]
    wide = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    shown = [
        "  ".join(cell.ljust(w) if at == 0 else cell.rjust(w) for at, (cell, w) in enumerate(zip(line, wide)))
        for line in lines
    ]
    told = [
        f"Seconds: within which 50, 90 and 99 % of {course.alone} texts alone are finished. "
        f"Tokens/s: what 50, 90 and 99 % of the batches of {course.batch} reach.",
        f"{'T: temperature; calls' if matching else 'Calls'}: passes through the network, of which steps that change nothing "
        f"need none.",
    ]
    if found and matching:
        whose = "as stated" if matching.stated else "that of held-out text"
        told.append(
            f"Quality under {found.speeds.judge['name']} at an entropy of {matching.entropy.value:.3f} nats, {whose}."
        )
        told += [
            f"{m.name} in {m.steps} steps spans {m.low:.3f} to {m.high:.3f} nats: {m.why}." for m in matching.misses
        ]
    return [*shown, "", *told]


def _cells(lap: Lap, found: Judged | None) -> list[str]:
    from redraft.scaling.results import span

    own = [lap.racer.name, str(lap.steps), f"{lap.calls:.0f}"]
    own += [f"{value:.3g}" for value in lap.latency()] + [quantity(value) for value in lap.rates()]
    if not (found and found.matching):
        return own
    at = next((m for m in found.matching.matches if (m.name, m.steps) == (lap.racer.name, lap.steps)), None)
    return [*own, *((span(at.quality), f"{at.at:.2f}") if at else ("-", "-"))]


def as_json(ran: list[Lap], found: Judged | None, compute: Compute) -> dict[str, Any]:
    from redraft.frontier.race import PERCENTILES

    course, first = ran[0].racer.course, ran[0].racer.model
    named_by = lambda values: {f"p{share}": value for share, value in zip(PERCENTILES, values, strict=True)}
    matches = {(m.name, m.steps): m for m in found.matching.matches} if found and found.matching else {}
    settings = []
    for lap in ran:
        racer, at = lap.racer, matches.get((lap.racer.name, lap.steps))
        settings.append({
            "model": racer.name, "family": racer.model.family.name, "sampler": racer.sampler or racer.model.family.sampler,
            "steps": lap.steps, "calls": lap.calls, "latency": named_by(lap.latency()),
            "tokens_per_second": named_by(lap.rates()), "matched": at and {
                "quality": at.quality.value, "low": at.quality.low, "high": at.quality.high, "temperature": at.at,
            },
        })  # fmt: skip
    asked = {"prompts": len(course.prompts), "length": course.length, "texts": course.texts, "batch": course.batch,
             "alone": course.alone, "seed": course.seed}  # fmt: skip
    return {**asked, **compute.record(first), "settings": settings, **_judged_json(found)}


def _judged_json(found: Judged | None) -> dict[str, Any]:
    if found is None:
        return {}
    matching = found.matching
    sweep = [
        {"model": s.name, "steps": s.steps, "temperature": s.temperature, "quality": s.quality, "quality_se": s.quality_se,
         "nats_per_byte": s.nats_per_byte, "entropy": s.entropy, "tokens_per_second": s.tokens_per_second}
        for s in (place.speed for place in found.speeds.places)
    ]  # fmt: skip
    misses = (
        [{"model": m.name, "steps": m.steps, "low": m.low, "high": m.high, "why": m.why} for m in matching.misses]
        if matching
        else []
    )
    entropy = matching and {"nats": matching.entropy.value, "stated": matching.stated}
    return {"evaluator": found.speeds.judge, "entropy": entropy, "sweep": sweep, "misses": misses}
