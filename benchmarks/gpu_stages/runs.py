"""Stage 1, second half: runs with data. The same twice, killed and continued, compiled, as CUDA graphs, in micro-batches."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_stages import laws
from gpu_stages.plan import Scale
from gpu_stages.record import Cases, Missed
from redraft.config import RunConfig, merge, validated
from redraft.runs.run import train
from redraft.training.setup import set_up
from redraft.training.trainer import Trainer

STEPS, STOP = 20, 10
COMPILED = 1e-4  # of the losses: fused kernels round otherwise, in float32
RESUMED = 1e-6  # of the weights, in float64: an atomic sum may come in another order


def run(cases: Cases, device: torch.device, size: Scale) -> None:
    with data() as folder:
        for precision in ("float32", "bfloat16"):
            cases.run(f"the same run twice, {precision}", twice, folder, device, precision)
        cases.run("stopped and continued", resumed, folder, device)
        ways = {"compiled": {"compile": True}, "graphs": {"compile": "graphs"}}
        ways["graphs, two micro-batches"] = {"compile": "graphs", "accumulate": 2}
        for (family, way), needs in asked(device).items():
            name = f"{family} {way}"
            cases.run(name, same_losses, folder, device, family, ways[way], needs=needs)
        for family in ("mdlm", "ar")[: 1 if device.type == "cpu" else 2] if can_compile(device) else ():
            cases.run(f"{family} samples compiled", same_samples, family, device, needs=20)


def can_compile(device: torch.device) -> bool:
    """Whether there is a C compiler, and on a GPU Triton."""
    return bool(shutil.which("gcc") or shutil.which("clang")) and (
        device.type == "cpu" or find_spec("triton") is not None
    )


def asked(device: torch.device) -> dict[tuple[str, str], float]:
    """Training that is compiled, what says most first, and the seconds that it needs. A CPU compiles what samples alone."""
    if device.type == "cpu" or not can_compile(device):
        return {}
    ways = [("mdlm", "compiled"), ("mdlm", "graphs, two micro-batches"), ("ar", "compiled"), ("mdlm", "graphs")]
    return dict.fromkeys([*ways, ("duo", "compiled"), ("esolm", "compiled"), ("ar", "graphs")], 12.0)


@contextmanager
def data() -> Iterator[Path]:
    """A folder with a text of made-up words, and a cache of our own."""
    with tempfile.TemporaryDirectory() as folder:
        rng, words = random.Random(0), "the of and a to in is you that it he was for on are as with".split()  # noqa: SIM905
        for number in range(12):
            text = " ".join(rng.choice(words) for _ in range(3000))
            (Path(folder) / f"{number:02}.txt").write_text(text)
        os.environ["REDRAFT_CACHE"] = str(Path(folder) / "cache")
        yield Path(folder)


def config(folder: Path, device: torch.device, family: str = "mdlm", **settings: Any) -> RunConfig:
    base: dict[str, Any] = {
        "family": family,
        "network": {"depth": 2, "heads": 1, "width": 64, "cond": 32},
        "data": {"source": f"{folder}/*.txt", "length": laws.L},
        "budget": {"steps": STEPS},
        "train": {"batch": 8, "lr": 3e-3, "precision": "float32", "device": str(device), "save_every": 1000},
    }
    return validated(RunConfig, merge(base, {"train": settings}))


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().double().flatten().cpu() for p in trainer.network.parameters()])


def trained(of: RunConfig, into: Path, stop: int = STEPS) -> tuple[Tensor, Tensor]:
    """The weights that a run ends with, or stands at after `stop` steps, which are saved; and what it logged of its losses."""
    into.mkdir(exist_ok=True)
    trainer = Trainer.start(set_up(of), into)
    steps, losses = train(trainer, into), []
    for record in steps:
        losses.append(record.loss)
        if record.step >= stop:
            steps.close()  # type: ignore[attr-defined]
            break
    return weights(trainer), torch.tensor(losses, dtype=torch.float64)


def twice(folder: Path, device: torch.device, precision: str) -> dict[str, Any]:
    """Whether it ends in the same bits is told, and is no law on a GPU, where sums of atomics come in any order."""
    first, second = (
        trained(config(folder, device, precision=precision), folder / f"{precision}{n}")[0] for n in (1, 2)
    )
    found = {"same_bits": torch.equal(first, second), "apart": laws.apart(second, first)}
    if device.type == "cpu" and not found["same_bits"]:
        raise Missed("two runs of one configuration differ", **found)
    return found


def resumed(folder: Path, device: torch.device) -> dict[str, Any]:
    of = config(folder, device, precision="float64")
    whole, _ = trained(of, folder / "whole")
    trained(of, folder / "parts", STOP)
    parts, _ = trained(of, folder / "parts")
    found = {"same_bits": torch.equal(whole, parts), "apart": laws.apart(parts, whole)}
    if found["apart"] > RESUMED:
        raise Missed(f"the continued run's weights are off by {found['apart']:.1e} of their largest", **found)
    return found


def same_losses(folder: Path, device: torch.device, family: str, way: dict[str, Any]) -> dict[str, Any]:
    """Step by step, of a run that is compiled and of one that is not."""
    found = []
    for settings in ({**way, "compile": False}, way):
        trainer = Trainer.start(set_up(config(folder, device, family, **settings)), folder / "nowhere")
        losses = [step.loss for step, _ in zip(trainer.run(), range(8))]
        found.append(torch.stack(losses).double().cpu())
    off = laws.apart(found[1], found[0])
    if off > COMPILED:
        raise Missed(f"losses are off by {off:.1e} (allowed: {COMPILED:.0e})", apart=off)
    return {"apart": off}


def same_samples(family: str, device: torch.device) -> dict[str, Any]:
    eager, compiled = (laws.sampled(family, "", device, way) for way in (False, True))
    equal = float((eager == compiled).double().mean())
    if equal < 1:
        raise Missed(f"{1 - equal:.1%} of the tokens differ", equal=equal)
    return {"equal": equal}
