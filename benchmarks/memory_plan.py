"""What `redraft plan` says of memory, beside the peak of a fresh process that trains three steps.

The peak is resident memory above the process as it was before the network was made (its libraries loaded, its data prepared).
On a CPU with checkpointed blocks it is mostly what malloc keeps in pieces, which the plan does not know.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import arguments, machine, parsed, peak_bytes, peak_words, publish, report_peak, table

from redraft.config import RunConfig, merge, validated
from redraft.planning.budget import plan_run
from redraft.training.setup import Setup, set_up
from redraft.training.trainer import Trainer

VOCABULARY, WITHIN = 8000, 0.1
BASE: dict[str, Any] = {
    "family": "mdlm",
    "data": {"length": 256},
    "budget": {"steps": 3},
    "train": {"batch": 8, "precision": "float32"},
}
CASES: dict[str, dict[str, Any]] = {
    "3M": {"network": {"size": "3M"}, "train": {"batch": 16}},
    "10M": {"network": {"size": "10M"}},
    "25M": {"network": {"size": "25M"}},
    "50M": {"network": {"size": "50M"}},
    "3M, AR": {"network": {"size": "3M"}, "family": "ar"},
    "3M, llama": {"network": {"size": "3M", "block": "llama"}, "train": {"batch": 16}},
    "10M, bfloat16": {"network": {"size": "10M"}, "train": {"precision": "bfloat16"}},
    "3M, moving average": {"network": {"size": "3M"}, "train": {"ema": 0.999}},
    "3M, blocks checkpointed": {"network": {"size": "3M"}, "train": {"batch": 32, "checkpointing": "blocks"}},
}


def configured(case: str, folder: Path, device: str) -> RunConfig:
    paths = {"data": {"source": str(folder / "text.jsonl"), "tokenizer": str(folder / "tokenizer.json")}}
    return validated(RunConfig, merge(merge(BASE, CASES[case]), {**paths, "train": {"device": device}}))


def write_data(folder: Path) -> None:
    """Random words of a vocabulary of `VOCABULARY`."""
    words = {"</s>": 0, **{f"w{number}": number for number in range(1, VOCABULARY)}}
    end: dict[str, Any] = {"id": 0, "content": "</s>", "special": True}
    end |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    model = {"type": "WordLevel", "vocab": words, "unk_token": "w1"}
    definition = {"version": "1.0", "added_tokens": [end], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    rng = np.random.default_rng(0)
    rows = (" ".join(f"w{n}" for n in rng.integers(1, VOCABULARY, 400)) for _ in range(100))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def train(setup: Setup, folder: Path) -> None:
    for _ in Trainer.start(setup, folder).run():
        pass


def measured(case: str, device: torch.device) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REDRAFT_CACHE"] = folder
        write_data(Path(folder))
        setup = set_up(configured(case, Path(folder), str(device)))
        torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
        report_peak(lambda: train(setup, Path(folder) / "run"), device)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--peak", choices=CASES, metavar="CASE", help="print the peak memory of one case, and no more")
    parser.add_argument("--cases", nargs="*", default=list(CASES), help="some of them")
    args = parsed(parser)
    if args.peak:
        return measured(args.peak, args.device)
    results: dict[str, dict[str, float]] = {}
    for case in args.cases[:1] if args.quick else args.cases:
        config = configured(case, Path(), str(args.device))
        plan = plan_run(config, VOCABULARY)
        peak = peak_bytes(__file__, case, *peak_words(args))
        results[case] = {"parameters": sum(plan.parameters.values()), "planned": plan.memory_bytes, "peak": peak}
        print(case, results[case], flush=True)
    rows = [
        (
            case,
            f"{r['parameters'] / 1e6:.1f} M",
            *(f"{r[key] / 1e6:.0f}" for key in ("planned", "peak")),
            f"{r['planned'] / r['peak']:.3f}",
        )
        for case, r in results.items()
    ]
    head = ("case", "parameters", "planned MB", "peak MB", f"ratio (within {WITHIN:.0%})")
    publish({"machine": machine(args.device), "within": WITHIN, "cases": results}, table(head, rows), args.json)
    return None


if __name__ == "__main__":
    main()
