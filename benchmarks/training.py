"""A training step of redraft against the same model with whole logits (tests/definitions.py), in one process, on one device.

Width 256, 6 layers, 32,000 tokens, 8 rows of 512, float32: forward, loss, backward. The whole-logits form predicts every
token of every row, [8, 512, 32000], and for Duo writes out the paper's sum; corruption and network are the same. Memory is
the peak of a fresh process above its size before the model is built. AR against transformers is train_step.py.

    python benchmarks/training.py --json docs/results/training.json
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.definitions import whole_loss

from redraft.families.base import build
from redraft.network.init import initialised
from redraft.network.sizes import from_size
from redraft.noise.counter_rng import Key
from redraft.types import Batch

VOCAB, ROWS, LENGTH = 32000, 8, 512
TOKENS = ROWS * LENGTH
# Least speed and most memory against whole logits.
TARGETS = {"mdlm": (1.4, 0.5), "esolm": (1.4, 0.5), "duo": (2.0, 0.35)}


def step(name: str, device: torch.device) -> Callable[[], None]:
    """`FAMILY` or `FAMILY whole`: one forward and backward pass."""
    family_name, _, whole = name.partition(" ")
    network, family = initialised(from_size("6M", "dit", VOCAB), 0), build(family_name, {}, VOCAB)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    network.to(device)
    tokens = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator).to(device)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(ROWS, device=device))

    def run() -> None:
        network.zero_grad(set_to_none=True)
        if whole:
            loss = whole_loss(network, family, batch, Key.of(0))
        else:
            loss = family.loss(network, batch, key=Key.of(0), progress=0.0).nats.sum() / TOKENS
        loss.backward()

    return run


def main(args: Namespace) -> None:
    names = [f"{family}{kind}" for family in TARGETS for kind in ("", " whole")]
    seconds = measure.take_turns({name: step(name, args.device) for name in names}, args.repeats, args.device)
    peaks = {name: measure.peak_bytes(__file__, name, *measure.peak_words(args)) for name in names}
    median, results, rows = measure.medians(seconds), [], []
    for family, (least, most) in TARGETS.items():
        whole = f"{family} whole"
        speed, best = (ratio(seconds, whole, family) for ratio in (measure.ratio, measure.ratio_of_best))
        memory = peaks[family] / peaks[whole]
        met = speed >= least and memory <= most
        found: dict[str, Any] = {"family": family, "speed": speed, "speed_of_best": best, "memory": memory, "met": met}
        found |= {"tokens_per_second": TOKENS / median[family], "peak_bytes_above_idle": peaks[family]}
        results.append(found)
        rows.append(
            (
                family,
                f"{TOKENS / median[whole]:.0f}",
                f"{TOKENS / median[family]:.0f}",
                f"{speed:.2f}",
                f"{best:.2f}",
                f"{peaks[whole] / 2**20:.0f}",
                f"{peaks[family] / 2**20:.0f}",
                f"{memory:.2f}",
                f"target >= {least}, <= {most}: {'met' if met else 'MISSED'}",
            )
        )
    head = ("family", "whole tokens/s", "tokens/s", "speed", "of best", "whole MiB", "MiB", "memory", "")
    result = {"benchmark": "training", "machine": measure.machine(args.device), "families": results, "seconds": seconds}
    result["shape"] = {"size": "6M", "rows": ROWS, "length": LENGTH, "vocab": VOCAB, "dtype": "float32"}
    measure.publish(result, measure.table(head, rows), args.json)


def two_steps(name: str, device: torch.device) -> None:
    run = step(name, device)
    run()
    run()


if __name__ == "__main__":
    parser = measure.arguments(str(__doc__).splitlines()[0])
    parser.set_defaults(repeats=5)
    parser.add_argument("--peak", metavar="CASE", help="print the peak memory of one case, and no more")
    arguments = measure.parsed(parser)
    if arguments.peak:
        measure.report_peak(lambda: two_steps(arguments.peak, arguments.device), arguments.device)
    else:
        main(arguments)
