"""How cost grows: seconds of a training step and of a sampling step against the length, the vocabulary and the batch.

Width 256, 6 layers, float32, on this CPU. One of L, V and B is varied, the others stay at 1024, 32,000 and 1. The exponent is
that of the last doublings, where what grows outweighs what does not: a least-squares line through the last three points in
logs.

    python benchmarks/growth.py --json docs/results/growth.json
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import measure
import numpy as np
import torch

from redraft.families.base import DiffusionFamily, build
from redraft.network.init import initialised
from redraft.network.sizes import from_size
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.sampling.base import Denoiser
from redraft.types import Batch

LENGTH, VOCAB, BATCH = 1024, 32000, 1
RANGES: dict[str, Sequence[int]] = {
    "length": (256, 512, 1024, 2048, 4096, 8192),
    "vocab": (256, 2048, 16384, 65536, 131072),
    "batch": (1, 2, 4, 8),
}
CASES = ("mdlm training", "duo training", "mdlm sampling", "duo sampling")


def step(case: str, length: int, vocab: int, batch: int) -> Callable[[], Any]:
    name, kind = case.split()
    network, family = initialised(from_size("6M", "dit", vocab), 0), build(name, {}, vocab)
    tokens = torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(0))
    index = torch.arange(batch)
    rows = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), index)

    def train() -> None:
        network.zero_grad(set_to_none=True)
        family.loss(network, rows, key=Key.of(0), progress=0.0).mean().backward()

    assert isinstance(family, DiffusionFamily)
    t, s = (torch.full((batch, 1), u, dtype=torch.float64) for u in (0.5, 0.5 - 1 / 64))
    noise = counter_rng.field(Key.of(1), index, length)
    xt = family.corrupt(tokens, t, noise)

    @torch.no_grad()
    def sample() -> None:
        """The step in the middle of 64."""
        family.step(Denoiser(network, family)(xt, t), xt, t, s, counter_rng.field(Key.of(2), index, length))

    return train if kind == "training" else sample


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes[-3:]), np.log(seconds[-3:]), 1)[0])


def main(args: Namespace) -> None:
    results: dict[str, Any] = {}
    tables = []
    for axis, sizes in RANGES.items():
        kept = [s for s in sizes if not (args.quick and s > 2048)]
        rows = []
        for case in CASES:
            seconds = []
            for size in kept:
                where = {"length": LENGTH, "vocab": VOCAB, "batch": BATCH, axis: size}
                seconds.append(measure.medians(measure.take_turns({case: step(case, **where)}, args.repeats))[case])
            grows = exponent(kept, seconds) if len(kept) > 2 else math.nan
            results.setdefault(axis, {})[case] = {"sizes": kept, "seconds": seconds, "exponent": grows}
            rows.append((case, *(f"{s:.3f}" for s in seconds), f"{grows:.2f}"))
        tables.append(measure.table((axis, *map(str, kept), "exponent"), rows))
    result = {"benchmark": "growth", "machine": measure.machine(), "axes": results}
    measure.publish(result, "\n\n".join(tables), args.json)


if __name__ == "__main__":
    parser = measure.arguments(str(__doc__).splitlines()[0])
    parser.set_defaults(repeats=3)
    main(measure.parsed(parser))
