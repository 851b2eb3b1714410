"""redraft's samplers against the papers' definitions of them (tests/definitions.py), in one process, on one device.

Width 256, 6 layers, 32,000 tokens, texts of 1024, a batch of 4, random weights, float32. The definitions predict every
position at every step, form float64 laws over all states and race for each; one of their steps costs what any other does, so a
few are timed (`--slow-steps`, or `--whole` for all of them) and scaled to the number of steps. redraft's runs are timed whole.

    python benchmarks/sampling.py --json docs/results/sampling.json
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import definitions

from redraft.families.base import DiffusionFamily, build
from redraft.families.esolm import EsoLM
from redraft.hub.model import Model
from redraft.network.init import initialised
from redraft.network.sizes import from_size
from redraft.network.transformer import Transformer
from redraft.noise.counter_rng import Key
from redraft.noise.kappa import even_times
from redraft.sampling.ordered import Ordered
from redraft.text.tokenizers.tokenizer import Bytes
from redraft.types import Canvas

VOCAB, LENGTH, ROWS, STEPS = 32000, 1024, 4, 64
EVERY = 10**6  # more steps than tokens: one token a call
KAPPA = 0.9


@dataclass(frozen=True)
class Case:
    """A family and a sampler, with the least speed and most memory it should have against its definition."""

    family: str
    sampler: str
    steps: int
    speed: float
    memory: float | None = 1 / 8
    options: tuple[tuple[str, Any], ...] = ()


CASES = {
    "mdlm ancestral": Case("mdlm", "ancestral", STEPS, 10),
    "duo ancestral": Case("duo", "ancestral", STEPS, 5),
    "mdlm psi": Case("mdlm", "psi", STEPS, 4, None, (("kappa", KAPPA),)),
    "duo psi": Case("duo", "psi", STEPS, 4, None, (("kappa", KAPPA),)),
    "esolm, a token a call": Case("esolm", "ordered", EVERY, 3, None),
}


def network(device: torch.device) -> Transformer:
    """Random weights everywhere, so that nothing is a zero that a kernel could skip."""
    made = initialised(from_size("6M", "dit", VOCAB), 0)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return made.requires_grad_(False).eval().to(device)


def model(family: str, net: Transformer) -> Model:
    return Model(build(family, {}, VOCAB), net, Bytes(), LENGTH, {})


def blank(device: torch.device, rows: int = ROWS, length: int = LENGTH) -> Canvas:
    tokens = torch.zeros(rows, length, dtype=torch.int64, device=device)
    return Canvas(tokens, torch.zeros_like(tokens, dtype=torch.bool))


def fast(case: Case, net: Transformer, rows: int = ROWS) -> Callable[[], tuple[int, int]]:
    """What `Model.sample` runs; returns calls of the network and rows headed."""
    made = model(case.family, net)

    def run() -> tuple[int, int]:
        denoiser = made.denoiser()
        *_, finished = made.frames(blank(made.device, rows), denoiser, case.sampler, case.steps, 0, dict(case.options))
        assert finished.tokens.max() < VOCAB
        return denoiser.calls, denoiser.rows

    return run


def slow(case: Case, net: Transformer, steps: int) -> Callable[[], None]:
    """`steps` steps of the definition, spread over its grid."""
    family, device = build(case.family, {}, VOCAB), net.embedding.device
    if isinstance(family, EsoLM):
        return lambda: _none(
            definitions.ordered_uncached(
                net, family, blank(device), Ordered(case.steps), Key.of(0).fold_in("sample"), steps
            )
        )
    assert isinstance(family, DiffusionFamily)
    law = definitions.posterior(family) if case.sampler == "ancestral" else definitions.psi(family, KAPPA)
    grid, generator = even_times(case.steps).tolist(), torch.Generator(device).manual_seed(0)
    spread = [int((i + 0.5) * case.steps / steps) for i in range(steps)]

    def run() -> None:
        for number in spread:
            canvas = _at(family, grid[number], device)
            definitions.step(net, family, canvas, grid[number], grid[number + 1], law, generator)

    return run


def _at(family: DiffusionFamily, t: float, device: torch.device) -> Canvas:
    """A canvas as the chain has it at time t."""
    canvas = blank(device)
    at = torch.full((ROWS, 1), t, dtype=torch.float64, device=device)
    drawn = torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
    noise = lambda purpose: drawn
    return Canvas(family.corrupt(canvas.tokens, at, noise), canvas.fixed)


def _none(_: Any) -> None:
    return None


def compare(name: str, case: Case, net: Transformer, args: Namespace) -> dict[str, Any]:
    """Turns of both, their ratio, calls and rows headed."""
    calls, headed = fast(case, net)()
    length = case.steps if case.steps < EVERY else calls
    steps = length if args.whole else args.slow_steps
    runs = {"fast": fast(case, net), "slow": slow(case, net, steps)}
    seconds = measure.take_turns(runs, args.repeats, args.device)
    seconds["slow"] = [s * length / steps for s in seconds["slow"]]
    peaks = {kind: measure.peak_bytes(__file__, f"{kind} {name}", *measure.peak_words(args)) for kind in runs}
    median = measure.medians(seconds)
    speed, memory = measure.ratio(seconds, "slow", "fast"), peaks["fast"] / peaks["slow"]
    return {
        "case": name,
        "tokens_per_second": ROWS * LENGTH / median["fast"],
        "seconds": median,
        "speed": speed,
        "speed_of_best": measure.ratio_of_best(seconds, "slow", "fast"),
        "peak_bytes_above_idle": peaks,
        "memory": memory,
        "calls": calls,
        "tokens_per_call": ROWS * LENGTH / calls,
        "rows_headed": headed,
        "slow_steps_timed": steps,
        "met": speed >= case.speed and (case.memory is None or memory <= case.memory),
    }


def against_ar(net: Transformer, args: Namespace) -> dict[str, Any]:
    """Eso-LM with one token a call against left to right, both with a cache; and first-hitting's calls for one text."""
    runs = {"esolm": fast(CASES["esolm, a token a call"], net), "ar": fast(Case("ar", "left_to_right", 0, 0), net)}
    seconds = measure.take_turns(runs, args.repeats, args.device)
    start = time.perf_counter()
    calls, headed = fast(Case("mdlm", "first_hitting", 0, 0), net, rows=1)() if not args.quick else (LENGTH, LENGTH)
    ratio = measure.ratio(seconds, "esolm", "ar")
    return {
        "seconds": measure.medians(seconds),
        "esolm_over_ar": ratio,
        "of_best": measure.ratio_of_best(seconds, "esolm", "ar"),
        "met": ratio <= 1.3,
        "first_hitting": {
            "calls": calls,
            "rows_headed": headed,
            "events": LENGTH,
            "seconds": time.perf_counter() - start,
        },
    }


def main(args: Namespace) -> None:
    net = network(args.device)
    chosen = {name: case for name, case in CASES.items() if args.only in name}
    results = [compare(name, case, net, args) for name, case in chosen.items()]
    rows = [
        (
            r["case"],
            f"{r['seconds']['slow']:.1f}",
            f"{r['seconds']['fast']:.2f}",
            f"{r['tokens_per_second']:.0f}",
            f"{r['speed']:.1f}",
            f"{r['speed_of_best']:.1f}",
            f"{r['memory']:.3f}",
            str(r["calls"]),
            f"{r['tokens_per_call']:.1f}",
            str(r["rows_headed"]),
            f"target >= {CASES[r['case']].speed}: {'met' if r['met'] else 'MISSED'}",
        )
        for r in results
    ]
    head = (
        "sampler",
        "slow s",
        "fast s",
        "tokens/s",
        "speed",
        "of best",
        "memory",
        "calls",
        "a call",
        "rows headed",
        "",
    )
    text = measure.table(head, rows)
    result: dict[str, Any] = {"benchmark": "sampling", "machine": measure.machine(args.device), "cases": results}
    if not args.only:
        result["against_ar"] = other = against_ar(net, args)
        text += f"\n\nesolm, a token a call / ar, both cached: {other['esolm_over_ar']:.2f} (target <= 1.3: "
        text += f"{'met' if other['met'] else 'MISSED'}); first-hitting, one text: {other['first_hitting']}"
    result["shape"] = {"size": "6M", "rows": ROWS, "length": LENGTH, "vocab": VOCAB, "steps": STEPS, "dtype": "float32"}
    measure.publish(result, text, args.json)


def peak(name: str, device: torch.device) -> None:
    kind, _, case = name.partition(" ")
    net = network(device)
    if kind == "fast":
        fast(CASES[case], net)()
    else:
        slow(CASES[case], net, 2)()


if __name__ == "__main__":
    parser = measure.arguments(str(__doc__).splitlines()[0])
    parser.set_defaults(repeats=5)
    parser.add_argument("--slow-steps", type=int, default=3, help="steps of a definition that are timed a turn")
    parser.add_argument("--whole", action="store_true", help="time every step of the definitions (hours)")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--peak", metavar="CASE", help="print the peak memory of one case, and no more")
    arguments = measure.parsed(parser)
    torch.set_grad_enabled(False)
    if arguments.peak:
        measure.report_peak(lambda: peak(arguments.peak, arguments.device), arguments.device)
    else:
        main(arguments)
