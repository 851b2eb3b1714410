"""One stage, in the process that `benchmarks/gpu.py` starts for it."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from gpu_stages import ceiling, commands, laws, sampling, steps
from gpu_stages.plan import scale
from gpu_stages.record import Cases, Report
from redraft.network.device import pick_device


def main(args: Namespace) -> None:
    size, device = scale(args.quick), pick_device(args.device)
    # Small cases on cores that others use too: threads that wait for each other would take most of the time.
    torch.set_num_threads(1 if args.quick else min(8, os.cpu_count() or 1))
    cases = Cases(Report.read(args.json), args.stage, args.deadline)
    if args.stage == "4":
        commands.run(cases, device, size, args.text, args.tokenizer)
    else:
        parts = {"0": ceiling.run, "1": laws.run, "2a": steps.small, "2b": steps.large, "3": sampling.run}
        parts[args.stage](cases, device, size)
    cases.done()


def parsed() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True, help="of time.time()")
    parser.add_argument("--device", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--text", default="stdlib")
    parser.add_argument("--tokenizer", default="bytes")
    return parser.parse_args()


if __name__ == "__main__":
    main(parsed())
