"""How long `redraft study fit` takes on a large table: 5,000 records of two families, 1,000 resamples, no torch.

python benchmarks/fit_speed.py --json docs/results/fit_speed.json
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np

from redraft.files import write_json
from redraft.scaling.fit import fit
from redraft.scaling.laws.parametric import Law
from redraft.scaling.records import Point

LAW = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


def records(total: int, families: int, noise: float = 0.01) -> list[Point]:
    """Families that differ by a factor in compute: 10 budgets, sizes e^(+-1.2) about the best, seeds to fill up."""
    rng, points = np.random.default_rng(0), []
    each, budgets, seeds = total // families, 10, 5
    sizes = max(1, each // budgets // seeds)
    for i in range(families):
        factor = 4.0**i
        for flops in np.geomspace(1e18, 1e21, budgets).tolist():
            best = (LAW.alpha * LAW.A / (LAW.beta * LAW.B)) ** (1 / (LAW.alpha + LAW.beta)) * (
                flops / factor / 6
            ) ** LAW.allocation
            for params in (best * np.exp(np.linspace(-1.2, 1.2, sizes))).tolist():
                tokens = flops / 6 / params
                truth = LAW.at(np.array([params]), np.array([tokens / factor]))[0]
                for seed in range(seeds):
                    loss = float(truth * np.exp(noise * rng.standard_normal()))
                    name = "ar" if i == 0 else f"family{i}"
                    points.append(Point(name, params, tokens, flops, loss, budget=flops, seed=seed))
    return points


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--families", type=int, default=2)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    points = records(options.records, options.families)
    began = time.perf_counter()
    fits = fit(points, resamples=options.resamples)
    seconds = time.perf_counter() - began
    told: dict[str, Any] = {
        "records": len(points),
        "families": options.families,
        "resamples": options.resamples,
        "seconds": seconds,
        "torch": "torch" in sys.modules,
        "size_exponents": {name: f.laws.params.exponent.value for name, f in fits.families.items() if f.laws.params},
    }
    print(f"{told['records']} records, {told['resamples']} resamples: {seconds:.1f} s, torch loaded: {told['torch']}")
    if options.json:
        write_json(options.json, told)


if __name__ == "__main__":
    main()
