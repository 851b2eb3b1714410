"""The head and its loss alone: redraft's chunked cross-entropy, torch's own, and whole logits, forward and backward.

2048 rows of width 256 onto 32,000 ids, as in a training step of 4 x 512 tokens. torch's is `linear_cross_entropy` with its
chunking options (torch >= 2.12; left out where it is missing). All three give the gradients of the sum.

    python benchmarks/head.py --json docs/results/head.json
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import measure
import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.network.head import cross_entropy

ROWS, WIDTH, VOCAB = 2048, 256, 32000


def inputs(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, WIDTH, generator=generator).to(device, dtype).requires_grad_()
    weight = (0.05 * torch.randn(VOCAB, WIDTH, generator=generator)).to(device).requires_grad_()
    return rows, weight, torch.randint(0, VOCAB, (ROWS,), generator=generator).to(device)


def torchs(rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(rows, weight.to(rows.dtype), targets, reduction="sum", options=options)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "redraft": lambda rows, weight, targets: cross_entropy(rows, weight, None, targets).sum(),
    "whole": lambda rows, weight, targets: F.cross_entropy(rows @ weight.to(rows.dtype).T, targets, reduction="sum"),
}
if hasattr(F, "linear_cross_entropy"):
    WAYS["torch"] = torchs


def step(name: str, device: torch.device) -> Callable[[], Tensor]:
    way, _, kind = name.partition(" ")
    rows, weight, targets = inputs(getattr(torch, kind), device)

    def run() -> Tensor:
        rows.grad = weight.grad = None
        loss = WAYS[way](rows, weight, targets)
        loss.backward()
        return loss.detach()

    return run


def main(args: Namespace) -> None:
    names = [f"{way} {kind}" for kind in ("float32", "bfloat16") for way in WAYS]
    seconds = measure.take_turns({name: step(name, args.device) for name in names}, args.repeats, args.device)
    peaks = {name: measure.peak_bytes(__file__, name, *measure.peak_words(args)) for name in names}
    median = measure.medians(seconds)
    speed = {name: measure.ratio(seconds, name, f"redraft {name.split()[1]}") for name in names}
    rows = [(n, f"{median[n]:.3f}", f"{speed[n]:.2f}", f"{peaks[n] / 2**20:.0f}") for n in names]
    found = {n: {"seconds": median[n], "over_redraft": speed[n], "peak_bytes_above_idle": peaks[n]} for n in names}
    result = {"benchmark": "head", "machine": measure.machine(args.device), "ways": found}
    text = measure.table(("head and loss", "seconds", "over redraft", "peak MiB"), rows)
    measure.publish(result, text, args.json)


if __name__ == "__main__":
    parser = measure.arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--peak", metavar="CASE", help="print the peak memory of one case, and no more")
    arguments = measure.parsed(parser)
    if arguments.peak:
        measure.report_peak(step(arguments.peak, arguments.device), arguments.device)
    else:
        main(arguments)
