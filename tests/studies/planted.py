"""A planted world: families whose best size and loss follow known power laws, and a study directory that holds it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redraft.studies.records import Point

BUDGETS = (3e10, 9e10, 2.7e11)
HOSTILE = '</pre><script src="http://x.example/a.js">alert(1)</script>\x00\x1b[31m\u202e\x07 & <b>"quoted"'


@dataclass(frozen=True)
class Planted:
    """loss = A C^-g (1 + w (ln N - ln N*)^2), N* = k C^a: a parabola in ln N about an exact power law."""

    k: float
    a: float
    A: float
    g: float
    w: float = 0.03

    def loss(self, flops: float, params: float) -> float:
        return self.A * flops**-self.g * (1 + self.w * np.log(params / self.best(flops)) ** 2)

    def best(self, flops: float) -> float:
        return self.k * flops**self.a


WORLD = {
    "ar": Planted(0.06, 0.52, 14.0, 0.072),
    "mdlm": Planted(0.10, 0.49, 14.7, 0.070),
    "duo": Planted(0.05, 0.52, 14.9, 0.069),
    "esolm": Planted(0.07, 0.50, 15.4, 0.0705),
}


def planted_points(
    seed: int = 0,
    *,
    families: tuple[str, ...] = ("ar", "mdlm"),
    budgets: tuple[float, ...] = BUDGETS,
    sizes: int = 5,
    seeds: int = 1,
    sd: float = 0.0,
    width: float = 1.3,
    shift: float = 0.15,
) -> list[Point]:
    """An IsoFLOP study of the planted world, `sd` nats of noise a run; sizes span e^(+-width) about N* e^shift."""
    rng = np.random.default_rng(seed)
    points = []
    for family in families:
        for flops in budgets:
            for u in np.linspace(-width, width, sizes) + shift:
                params = float(WORLD[family].best(flops) * np.exp(u))
                for s in range(seeds):
                    loss = WORLD[family].loss(flops, params) + sd * rng.standard_normal()
                    points.append(Point(family, params, flops / 6 / params, flops, float(loss), budget=flops, seed=s))
    return points


def multiplier_of(family: str, flops: float) -> float:
    """The planted compute multiplier against AR."""
    own, ar = WORLD[family], WORLD["ar"]
    return float(flops / (ar.A / (own.A * flops**-own.g)) ** (1 / ar.g))


def write_study(folder: Path) -> None:
    rng = np.random.default_rng(5)
    sizes = {"12k": 12e3, "30k": 30e3, "75k": 75e3}
    runs = [(f, f, s, c, 0) for f in WORLD for s in sizes for c in BUDGETS]
    runs += [(arm, "mdlm", "30k", 9e10, s) for s in range(3) for arm in ("mdlm", "mdlm-nelbo") if s or arm != "mdlm"]
    for arm, family, size, flops, seed in runs:
        loss = WORLD[family].loss(flops, sizes[size]) + 0.008 * rng.standard_normal() + 0.03 * (arm != family)
        _write_run(folder, _record(arm, family, size, sizes[size], flops, seed, loss))
    _write_run(folder, _record("judge", "ar", "150k", 150e3, 5e11, 1000, 1.95))
    (folder / "study.toml").write_text('title = "A planted <study>"\nworkers = 2\n', encoding="utf-8")
    _write_lines(folder / "frontier.jsonl", _frontier_rows())
    texts = {
        "ar": "def main():\n\treturn 0\n",
        "mdlm": HOSTILE,
        "duo": "import os\nclass \ud7ff\ufffd x",
        "esolm": "é" * 300,
    }
    rows = [{"family": f, "name": f, "steps": 64, "temperature": 1.0, "text": text} for f, text in texts.items()]
    _write_lines(folder / "samples.jsonl", rows)


def _record(arm: str, family: str, size: str, params: float, flops: float, seed: int, loss: float) -> dict[str, Any]:
    tokens = flops / 6 / params
    return {
        "name": f"{arm}-{size}-{flops:.3g}-s{seed}".replace("+", ""), "arm": arm, "family": family, "options": {},
        "seed": seed, "size": size, "params": int(params), "parameters": {"embedding": 4000, "blocks": int(params)},
        "tokens": int(tokens), "steps": int(tokens / 512), "batch": 8, "length": 64, "flops": flops * 0.999,
        "budget": flops, "convention": "blocks+head", "flops_by_convention": {"6ND": flops}, "loss": loss,
        "loss_se": 0.0 if family == "ar" else 0.003, "loss_kind": "exact" if family == "ar" else "bound",
        "bits_per_byte": loss / np.log(2), "ppl": float(np.exp(loss)),
        "data": {"source": "stdlib", "sha256": "ab12" * 16, "tokenizer": "bytes", "tokens": 9_000_000},
        "versions": {"redraft": "0.1.0", "torch": "2.13.0"}, "git": {"commit": "0123abcd", "changed": False},
        "machine": {"device": "cpu", "name": "x86_64", "threads": 1}, "timing": {"seconds": 21.0},
    }  # fmt: skip


def _frontier_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"family": "text", "steps": 0, "temperature": 1.0, "quality": 2.05, "quality_se": 0.02, "entropy": 2.95,
         "entropy_se": 0.01, "distinct_2": 0.21, "samples": 128, "length": 64},
    ]  # fmt: skip
    speed = {"ar": 1.0, "mdlm": 1.1, "duo": 1.0, "esolm": 2.4}
    for family, fast in speed.items():
        for steps in (64,) if family == "ar" else (2, 4, 8, 16, 32, 64):
            gap = {"ar": 0.0, "mdlm": 0.35, "duo": 0.2, "esolm": 0.5}[family] + {"duo": 1.2}.get(family, 2.6) / steps
            rate = fast * 6.4e5 / steps * (9 if family == "ar" else 1)
            rows.append(
                {"family": family, "name": f"{family}-75k", "sampler": "ancestral", "steps": steps, "temperature": 1.0,
                 "tokens_per_second": rate, "nfe": steps, "quality": 2.2 + gap, "quality_se": 0.03,
                 "entropy": 2.9 - 0.3 / steps + 0.1 * gap, "entropy_se": 0.02, "distinct_2": 0.3, "samples": 32,
                 "batch": 32, "length": 64}
            )  # fmt: skip
    return rows


def _write_run(folder: Path, record: dict[str, Any]) -> None:
    place = folder / "runs" / record["name"]
    place.mkdir(parents=True, exist_ok=True)
    (place / "record.json").write_text(json.dumps(record), encoding="utf-8")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
