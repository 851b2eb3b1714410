"""Few steps after distillation: a Duo model, its distilled student, and both sampled in 1 to 64 steps under one judge.

Trains a judge (AR), a teacher and a student of the teacher's size on the embedded corpus, or takes them from --runs.
Quality is nats per token under the judge, and the entropy of the samples stands beside it, for dull text scores well.

    python benchmarks/distillation.py --json docs/results/distillation.json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measure
import torch

import redraft
from redraft.config import RunConfig, validated
from redraft.evaluation.generation.diversity import distinct, unigram_entropy
from redraft.evaluation.generation.evaluators import RedraftEvaluator, mean
from redraft.hub.model import Model
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out
from redraft.types import last

DATA = {"source": "stdlib", "length": 64}
# Seven rounds: the last stride is 64/512, an eighth of the way.
DISTILLED = {"name": "duo", "objective": "distillation", "rounds": 7}


def recipes(runs: Path, scale: float, device: torch.device) -> dict[str, dict[str, Any]]:
    """Evaluator, teacher and student; `scale` shortens all three."""
    train = {"threads": 1, "device": str(device), "min_lr": 0.05}
    return {
        "judge": {
            "seed": 7,
            "family": "ar",
            "network": {"size": "1M"},
            "data": {"source": "stdlib", "length": 128},
            "budget": {"steps": int(700 * scale)},
            "train": {**train, "batch": 32, "lr": 4e-3},
        },
        "duo": {
            "family": "duo",
            "network": {"size": "300k"},
            "data": DATA,
            "budget": {"steps": int(2000 * scale)},
            "train": {**train, "batch": 64, "lr": 6e-3},
        },
        "student": {
            "family": DISTILLED,
            "network": {"size": "300k"},
            "data": DATA,
            "budget": {"steps": int(2100 * scale)},
            "train": {**train, "batch": 32, "lr": 1e-3, "min_lr": 0.3, "ema": 0.99, "init_from": str(runs / "duo")},
        },
    }


def trained(runs: Path, scale: float, device: torch.device) -> dict[str, Model]:
    models = {}
    for name, recipe in recipes(runs, scale, device).items():
        if not (runs / name / "record.json").exists():
            for _ in carry_out(open_run(validated(RunConfig, recipe), runs / name), runs / name):
                pass
        models[name] = redraft.load(runs / name, str(device))
    return models


def sampled(model: Model, judge: Model, sampler: str, steps: int, rows: int) -> dict[str, Any]:
    canvas = model.canvas("", rows, model.length)
    tokens = last(model.frames(canvas, model.denoiser(), sampler, steps, seed=0)).tokens
    nats, nats_se = RedraftEvaluator.of(judge).score(tokens, judge.tokenizer).per_token()
    entropy, entropy_se = mean([float(unigram_entropy(row)) for row in tokens])
    measured = {"nats": nats, "nats_se": nats_se, "entropy": entropy, "entropy_se": entropy_se}
    told = {"model": model.record["name"], "sampler": sampler, "steps": steps}
    return told | measured | {"distinct_2": distinct(tokens, 2)}


def main(args: Namespace, runs: Path) -> None:
    models = trained(runs, args.scale, args.device)
    judge = models.pop("judge")
    points = [
        sampled(model, judge, sampler, steps, args.rows)
        for sampler in ("ancestral", "greedy_tail")
        for model in models.values()
        for steps in (1, 2, 4, 8, 16, 32, 64)
    ]
    rows = [
        (f"{p['sampler']}, {p['model']}", str(p["steps"]), f"{p['nats']:.3f} ± {p['nats_se']:.3f}",
         f"{p['entropy']:.3f} ± {p['entropy_se']:.3f}", f"{p['distinct_2']:.3f}")
        for p in points
    ]  # fmt: skip
    text = measure.table(("sampler, model", "steps", "nats under the judge", "entropy", "distinct bigrams"), rows)
    losses = {name: model.record["loss"] for name, model in {**models, "judge": judge}.items()}
    result = {"benchmark": "distillation", "machine": measure.machine(args.device), "losses": losses, "points": points}
    measure.publish(result, f"{text}\n\nheld-out nats per token: {losses}", args.json)


def parsed() -> Namespace:
    parser = ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=Path, help="folder with runs named judge, duo and student; trained if missing")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the training steps")
    parser.add_argument("--rows", type=int, default=512, help="texts a point")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    measure.device_argument(parser)
    return measure.placed(parser.parse_args())


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = parsed()
    if arguments.runs:
        main(arguments, arguments.runs)
    else:
        with TemporaryDirectory() as folder:
            main(arguments, Path(folder))
