"""How loose the usual bound is: every estimator of -log p on the same windows, for small models of the embedded corpus.

Trains (or, in --runs, finds) MDLM, Duo and Eso-LM at equal FLOPs, and scores all of them with the same counters.
"""

from __future__ import annotations

import math
import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measure
import torch
from torch import Tensor

import redraft
from redraft.config import RunConfig, validated
from redraft.evaluation.compute import wait
from redraft.evaluation.likelihood.estimators import (
    ChainRule,
    ContinuousTime,
    Estimator,
    ImportanceWeighted,
    MaskCount,
    PathWeighted,
    regrouped,
)
from redraft.evaluation.likelihood.nelbo import draw_nats
from redraft.hub.model import Model
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out
from redraft.text.shards.packing import ordered_windows
from redraft.text.shards.prepare import prepare_cached

MODELS: dict[str, Any] = {
    "mdlm": "mdlm",
    "duo": "duo",
    "esolm-1": {"name": "esolm", "alpha_0": 1.0},
    "esolm-0.25": {"name": "esolm", "alpha_0": 0.25},
}
KS = (1, 4, 16)


@dataclass(frozen=True)
class Cell:
    """One estimate, nats per token. `se`: over windows and draws together. `draw_se`: of the draws alone, windows fixed."""

    nats: float
    se: float
    draw_se: float | None
    draws: int


def trained(name: str, into: Path, flops: float, device: torch.device) -> Path:
    """The run folder of a model, trained unless it is there."""
    table = {
        "family": MODELS[name],
        "network": {"size": "25k"},
        "data": {"source": "stdlib", "length": 64},
        "budget": {"flops": flops},
        "train": {"lr": 3e-3, "batch": 8, "threads": 1, "device": str(device)},
    }
    for _ in carry_out(open_run(validated(RunConfig, table), into / name), into / name):
        pass
    return into / name


def estimated(model: Model, windows: Any, args: Namespace) -> dict[str, Tensor]:
    """Column -> nats per token [N, R]. Larger k regroups the draws of k = 1, as the estimators themselves do."""
    plan: dict[str, tuple[Estimator, int]] = {
        "bound": (ContinuousTime(), args.draws),
        "count": (MaskCount(), args.draws),
        "left_to_right": (ChainRule("left_to_right"), 1),
        "random": (ChainRule("random"), 4),
        "weighted": (ImportanceWeighted(1), max(KS)),
        "path": (PathWeighted(1, args.steps), max(KS)),
    }
    nats = {
        column: draw_nats(model.network, model.family, windows, estimator, draws, args.batch)
        for column, (estimator, draws) in plan.items()
        if estimator.refusal(model.family) is None
    }
    for column in ("weighted", "path"):
        if column in nats:
            one = nats.pop(column)
            nats |= {f"{column}_{k}": regrouped(one, k) for k in KS}
    return {column: values / windows.shape[1] for column, values in nats.items()}


def cell(nats: Tensor) -> Cell:
    windows, draws = nats.shape
    alone = float((nats.var(1) / draws).sum().sqrt() / windows) if draws > 1 else None
    return Cell(float(nats.mean()), float(nats.mean(1).std() / math.sqrt(windows)), alone, draws)


def gaps(nats: dict[str, Tensor]) -> dict[str, Any]:
    """Differences window by window. `gap`: the usual bound less the tightest; `from_k`: k = 1 less the largest k."""
    kind = "weighted" if "weighted_1" in nats else "path"
    tightest = nats[f"{kind}_{max(KS)}"].mean(1)
    paired = {"gap": nats["bound"].mean(1) - tightest, "from_k": nats[f"{kind}_1"].mean(1) - tightest}
    return {name: asdict(cell(values[:, None])) for name, values in paired.items()}


def main(args: Namespace, runs: Path) -> None:
    results, rows = {}, []
    columns = ("bound", "count", *(f"weighted_{k}" for k in KS), *(f"path_{k}" for k in KS), "left_to_right", "random")
    for name in MODELS:
        model = redraft.load(trained(name, runs, args.flops, args.device), str(args.device))
        corpus = prepare_cached("stdlib", model.tokenizer)
        windows = ordered_windows(corpus.split("validation"), model.length, args.rows)
        wait(args.device)
        start = time.perf_counter()
        nats = estimated(model, windows, args)
        wait(args.device)
        cells, found = {column: cell(values) for column, values in nats.items()}, gaps(nats)
        results[name] = {column: asdict(value) for column, value in cells.items()} | found
        results[name] |= {"seconds": time.perf_counter() - start, "trained_flops": model.record["flops"]}
        shown = (f"{cells[c].nats:.3f} ± {cells[c].se:.3f}" if c in cells else "" for c in columns)
        rows.append((name, *shown, *(f"{found[g]['nats']:.3f} ± {found[g]['se']:.3f}" for g in found)))
    text = measure.table(("nats/token", *columns, "gap", "from_k"), rows)
    settings = {"rows": args.rows, "draws": args.draws, "steps": args.steps, "flops": args.flops, "length": 64}
    result = {
        "benchmark": "likelihood",
        "machine": measure.machine(args.device),
        "settings": settings,
        "models": results,
    }
    measure.publish(result, text, args.json)


def parsed() -> Namespace:
    parser = ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=Path, help="folder of run folders named as the models; trained into if missing")
    parser.add_argument("--flops", type=float, default=1e12, help="of each model that is trained")
    parser.add_argument("--rows", type=int, default=64, help="validation windows")
    parser.add_argument("--draws", type=int, default=512, help="draws a window of the bound and of mask_count")
    parser.add_argument("--steps", type=int, default=64, help="of the path-weighted chain")
    parser.add_argument("--batch", type=int, default=32, help="rows a pass")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    measure.device_argument(parser)
    return measure.placed(parser.parse_args())


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = parsed()
    with TemporaryDirectory() as fresh:
        main(arguments, arguments.runs or Path(fresh))
