"""A planted world: families whose best size and loss follow known power laws, and a study directory that holds it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redraft.scaling.laws.parametric import Law
from redraft.scaling.records import Point
from tests.frontier.planted_speeds import write_speeds

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
    texts = {
        "ar": "def main():\n\treturn 0\n",
        "mdlm": HOSTILE,
        "duo": "import os\nclass \ud7ff\ufffd x",
        "esolm": "é" * 300,
    }
    write_speeds(folder, texts)


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


def _write_run(folder: Path, record: dict[str, Any]) -> None:
    place = folder / "runs" / record["name"]
    place.mkdir(parents=True, exist_ok=True)
    (place / "record.json").write_text(json.dumps(record), encoding="utf-8")


CHINCHILLA = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # arXiv:2203.15556, as vpnls plants it
UNEVEN = Law(E=1.69, A=12000.0, B=180.0, alpha=0.5, beta=0.25)  # the further alpha and beta, the worse a parabola
GRIDS = {"centred": (1.2, 0.0), "wide": (2.5, 0.0), "off-centre": (1.2, 0.75)}  # half-width and shift of ln N


def best_size(law: Law, flops: float) -> float:
    """N* of a law under C = 6 N D."""
    ratio = law.alpha * law.A / (law.beta * law.B)
    return float(ratio ** (1 / (law.alpha + law.beta)) * (flops / 6) ** law.allocation)


def law_points(
    law: Law = CHINCHILLA,
    *,
    family: str = "ar",
    budgets: int = 5,
    sizes: int = 7,
    grid: str = "centred",
    noise: float = 0.0,
    seed: int = 0,
    slower: float = 1.0,
) -> list[Point]:
    """IsoFLOP runs of L(N, D / slower), C = 6 N D over 2.5 decades, relative noise; 'ladder' has the same sizes throughout."""
    rng, points = np.random.default_rng([seed, len(family)]), []
    every = np.geomspace(1e18, 3e20, budgets).tolist()
    for flops in every:
        if grid == "ladder":
            low, high = best_size(law, every[0] / slower), best_size(law, every[-1] / slower)
            ladder = np.geomspace(low * np.exp(-1.6), high * np.exp(1.6), sizes)
        else:
            width, shift = GRIDS[grid]
            ladder = best_size(law, flops / slower) * np.exp(np.linspace(-width, width, sizes) + shift)
        tokens = flops / 6 / ladder
        losses = law.at(ladder, tokens / slower) * np.exp(noise * rng.standard_normal(sizes))
        rows = zip(ladder.tolist(), tokens.tolist(), losses.tolist())
        points += [Point(family, n, d, flops, loss, budget=flops, seed=0) for n, d, loss in rows]
    return points
