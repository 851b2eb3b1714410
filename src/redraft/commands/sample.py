"""Write text with a trained model.

redraft sample runs/first --prompt "def " -n 4 --length 256 --steps 64
redraft sample runs/first --prompt "def f(x):" --suffix "return x"      (fill in between; not for ar)
redraft sample runs/first --sampler psi --sampler.kappa 0.9             (options: redraft list samplers)
redraft sample runs/first --watch --animate first.svg                   (see it write; also .html and .gif)
redraft sample runs/first --prompts asked.jsonl --into texts.jsonl      (many prompts, packed; goes on if interrupted)
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from redraft.commands import device_flags, sample_many
from redraft.commands.recorder import Recorder
from redraft.display import emit
from redraft.errors import UserError, unknown
from redraft.numbers import WIDEST, real, seed, whole
from redraft.registry import SAMPLERS, checked_options, steps_remark

OVERRIDES = True


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a run folder or an exported model folder")
    parser.add_argument("--prompt", default="")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='a prompt a line, or {"prompt": ..., "suffix", "max_tokens"} as .jsonl',
    )
    parser.add_argument("--into", type=Path, metavar="FILE", help="with --prompts: where the texts go, as .jsonl")
    parser.add_argument("--rows", type=whole(1, 4096), default=64, help="with --prompts: texts written at once")
    parser.add_argument("--suffix", default="", help="text at the end of the canvas, to fill in before")
    parser.add_argument("-n", type=whole(1, WIDEST), default=1, help="how many texts")
    parser.add_argument(
        "--length",
        type=whole(1, WIDEST),
        default=None,
        help="tokens of the canvas, prompt included; a row of training if left out",
    )
    parser.add_argument("--steps", type=whole(1, WIDEST), help="64 if left out; for samplers that have steps")
    parser.add_argument("--temperature", type=real(0, 1e6), default=1.0)
    parser.add_argument("--top-p", type=real(0, 1, above=True), default=1.0)
    parser.add_argument("--sampler", default="", help="by name (redraft list samplers); the family's own if left out")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--watch", action="store_true", help="show the first text in every step, on standard error")
    parser.add_argument(
        "--animate", type=Path, metavar="FILE", help="the first text being written, as .svg, .html or .gif"
    )
    device_flags.arguments(parser, samples=True)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    if stray := [key for key in overrides if key != "sampler"]:
        raise unknown(
            "flag of `redraft sample`:", f"--{stray[0]}", ["--prompt", "--suffix", "--length", "--sampler.OPTION"]
        )
    check(options, further := overrides.get("sampler", {}))
    if options.prompts is not None:
        return sample_many.run(options, sample_many.check(options), further)
    compute = device_flags.compute(options)
    model = compute.load(options.model)
    steps = 64 if options.steps is None else options.steps
    canvas = model.canvas(options.prompt, options.n, options.length, options.suffix)
    beyond = model.beyond(canvas.tokens.shape[1])
    for told in filter(None, (beyond, steps_remark(options.sampler or model.family.sampler, options.steps))):
        print(f"Note: {told}.", file=sys.stderr)
    denoiser = model.denoiser(options.temperature, options.top_p, compute.compiled)
    steps_of = model.frames(canvas, denoiser, options.sampler, steps, options.seed, further)
    recorder, seconds = Recorder(model, canvas, options), 0.0
    try:
        while True:
            began = time.perf_counter()
            frame = next(steps_of, None)
            seconds += time.perf_counter() - began  # of sampling alone: what is shown of it takes time, too
            if frame is None:
                break
            canvas = frame
            recorder.add(canvas, denoiser.calls, seconds)
    finally:
        recorder.stop()
    recorder.save()
    texts = [model.text(row, len(model.tokenizer.encode(options.prompt))) for row in canvas.tokens]
    new = int((~canvas.fixed).sum())
    if options.json:
        lengths = {
            "length": canvas.tokens.shape[1],
            "trained_length": model.length,
            "beyond_training": beyond is not None,
        }
        counts = {"forwards": denoiser.calls, "new_tokens": new, "seconds": seconds}
        return emit({"texts": texts, **lengths, **counts, **compute.record(model)})
    print("\n\n".join(texts))
    print(f"[{new} tokens in {denoiser.calls} forwards, {new / seconds:.0f} tokens/s]", file=sys.stderr)
    return None


def check(options: Namespace, further: dict[str, Any]) -> None:
    """What is wrong and needs no torch to be seen."""
    device_flags.model(options)
    if options.into is not None and options.prompts is None:
        raise UserError("--into goes with --prompts: the texts of one prompt are printed")
    if options.sampler:
        checked_options("sampler", SAMPLERS, options.sampler, further)
    if options.animate is not None:
        from redraft.report.animation import check_animation

        check_animation(options.animate)
