"""Write text with a trained model.

redraft sample runs/first --prompt "def " -n 4 --length 256 --steps 64
redraft sample runs/first --prompt "def f(x):" --suffix "return x"      (fill in between; not for ar)
redraft sample runs/first --sampler psi --sampler.kappa 0.9             (options: redraft list samplers)
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.commands import device_flags
from redraft.display import emit
from redraft.errors import unknown
from redraft.numbers import WIDEST, real, seed, whole
from redraft.registry import SAMPLERS, checked_options, checked_steps

if TYPE_CHECKING:
    from redraft.hub.model import Model
    from redraft.types import Canvas


OVERRIDES = True


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a run folder or an exported model folder")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--suffix", default="", help="text at the end of the canvas, to fill in before")
    parser.add_argument("-n", type=whole(1, WIDEST), default=1, help="how many texts")
    parser.add_argument("--length", type=whole(1, WIDEST), default=None, help="tokens of the canvas, prompt included")
    parser.add_argument("--steps", type=whole(1, WIDEST), help="64 if left out; for samplers that have steps")
    parser.add_argument("--temperature", type=real(0, 1e6), default=1.0)
    parser.add_argument("--top-p", type=real(0, 1, above=True), default=1.0)
    parser.add_argument("--sampler", default="", help="by name (redraft list samplers); the family's own if left out")
    parser.add_argument("--seed", type=seed, default=0)
    device_flags.arguments(parser, samples=True)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    if stray := [key for key in overrides if key != "sampler"]:
        raise unknown(
            "flag of `redraft sample`:", f"--{stray[0]}", ["--prompt", "--suffix", "--length", "--sampler.OPTION"]
        )
    check(options, further := overrides.get("sampler", {}))
    compute = device_flags.compute(options)
    model = compute.load(options.model)
    steps = checked_steps(options.sampler or model.family.sampler, options.steps, 64)
    canvas = model.canvas(
        options.prompt, options.n, model.length if options.length is None else options.length, options.suffix
    )
    told = model.beyond(canvas.tokens.shape[1])
    if told:
        print(f"Note: {told}.", file=sys.stderr)
    denoiser = model.denoiser(options.temperature, options.top_p, compute.compiled)
    began = time.perf_counter()
    for frame in model.frames(canvas, denoiser, options.sampler, steps, options.seed, further):
        canvas = frame
        _show(model, canvas, options)
    seconds = time.perf_counter() - began
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    texts = [model.text(row, len(model.tokenizer.encode(options.prompt))) for row in canvas.tokens]
    new = int((~canvas.fixed).sum())
    if options.json:
        lengths = {
            "length": canvas.tokens.shape[1],
            "trained_length": model.length,
            "beyond_training": told is not None,
        }
        counts = {"forwards": denoiser.calls, "new_tokens": new, "seconds": seconds}
        return emit({"texts": texts, **lengths, **counts, **compute.record(model)})
    print("\n\n".join(texts))
    print(f"[{new} tokens in {denoiser.calls} forwards, {new / seconds:.0f} tokens/s]", file=sys.stderr)
    return None


def check(options: Namespace, further: dict[str, Any]) -> None:
    """What is wrong and needs no torch to be seen."""
    device_flags.model(options)
    if options.sampler:
        checked_options("sampler", SAMPLERS, options.sampler, further)


def _show(model: Model, canvas: Canvas, options: Namespace) -> None:
    """The first row as it is written, on one line of a terminal; what is not yet written is marked."""
    from redraft.types import Canvas

    if options.json or not sys.stderr.isatty():
        return
    [text] = model.show(Canvas(canvas.tokens[:1, :200], canvas.fixed[:1, :200]))
    print(f"\r\033[K{' '.join(text.split())[:100]}", end="", file=sys.stderr, flush=True)
