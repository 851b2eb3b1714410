"""How often 95 % intervals hold the planted truth, for each engine, parameter, noise and grid of sizes.

Runs are drawn from L(N, D) = E + A / N^alpha + B / D^beta, C = 6 N D, over 2.5 decades of budgets, with relative noise;
a second family needs SLOWER times the compute. A share p of n draws is known to sqrt(p (1 - p) / n): 1.5 % for 95 % of
200. Beside the shares stand the median error of the value and the median half-width of the interval.

    python benchmarks/coverage.py --draws 200 --json docs/results/coverage.json
"""

from __future__ import annotations

import math
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from redraft.files import write_json
from redraft.scaling.approaches import Approaches, family_number, fit_approaches
from redraft.scaling.laws.isoflop import curves
from redraft.scaling.laws.multiplier import Estimate, multiplier
from redraft.scaling.laws.parametric import Law
from redraft.scaling.laws.robustness import robustness
from redraft.scaling.records import Point

LAWS = {
    "chinchilla": Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
    "uneven": Law(E=1.69, A=12000.0, B=180.0, alpha=0.5, beta=0.25),
}
GRIDS = {"centred": (1.2, 0.0), "wide": (2.5, 0.0), "off-centre": (1.2, 0.75)}  # half-width and shift of ln N
SLOWER = 3.0
RESAMPLES = 200
Row = tuple[str, Estimate | None, float]


def best_size(law: Law, flops: float) -> float:
    ratio = law.alpha * law.A / (law.beta * law.B)
    return float(ratio ** (1 / (law.alpha + law.beta)) * (flops / 6) ** law.allocation)


def ladder(law: Law, grid: str, flops: float, every: list[float], sizes: int) -> Any:
    """The sizes at one budget; 'ladder' has the same at all of them, e^1.6 beyond the smallest and largest optimum."""
    if grid == "ladder":
        return np.geomspace(best_size(law, every[0]) * np.exp(-1.6), best_size(law, every[-1]) * np.exp(1.6), sizes)
    width, shift = GRIDS[grid]
    return best_size(law, flops) * np.exp(np.linspace(-width, width, sizes) + shift)


def draw(law: Law, grid: str, budgets: int, sizes: int, noise: float, seed: int) -> list[Point]:
    rng, points = np.random.default_rng(seed), []
    every = np.geomspace(1e18, 3e20, budgets).tolist()
    for family, factor in (("ar", 1.0), ("mdlm", SLOWER)):
        for flops in every:
            n = ladder(law, grid, flops / factor, [c / factor for c in every], sizes)
            d = flops / 6 / n
            losses = law.at(n, d / factor) * np.exp(noise * rng.standard_normal(sizes))
            rows = zip(n.tolist(), d.tolist(), losses.tolist())
            points += [Point(family, a, b, flops, loss, budget=flops) for a, b, loss in rows]
    return points


def estimates(points: list[Point], law: Law, seed: int) -> Iterator[Row]:
    """What is fitted, its estimate, and the truth."""
    every = curves(points)
    own = {f: [p for p in points if p.family == f] for f in ("ar", "mdlm")}
    fits = {f: fit_approaches(runs, every, seed, RESAMPLES) for f, runs in own.items()}
    yield from _of_family(fits["ar"], law)
    if (found := fits["ar"].parametric.law) is not None:
        ends = robustness(own["ar"], found, [seed, family_number("ar")], RESAMPLES)
        yield from ((f"{name}, profile", e, getattr(law, name)) for name, e in ends.profile.items())
        if ends.runs:
            yield from ((f"{name}, runs", ends.runs[name], getattr(law, name)) for name in ("E", "alpha", "beta"))
    best, reference = fits["mdlm"].best, fits["ar"].best
    if best and reference and (k := multiplier(best, reference, "ar")):
        inside = [r for r in k.ratios if not r.extrapolated]
        if inside:
            yield "k at the largest budget", inside[-1].multiplier, SLOWER


def _of_family(fits: Approaches, law: Law) -> Iterator[Row]:
    for name, isoflop in {"headline": fits.isoflop, "parabolas": fits.parabolas, "envelope": fits.envelope}.items():
        yield f"a, {name}", isoflop.params.exponent if isoflop.params else None, law.allocation
    truth = [_best_loss(law, m.flops) for m in fits.isoflop.minima]
    slope = np.polyfit(np.log([m.flops for m in fits.isoflop.minima]), np.log(truth), 1)[0]
    yield "g, headline", fits.isoflop.loss.exponent if fits.isoflop.loss else None, float(slope)
    yield "a, L(N, D)", fits.parametric.allocation, law.allocation
    for name in ("E", "alpha", "beta"):
        yield f"{name}, bootstrap", getattr(fits.parametric, name), getattr(law, name)


def _best_loss(law: Law, flops: float) -> float:
    n = best_size(law, flops)
    return float(law.at(np.array(n), np.array(flops / 6 / n)))


def cell(law: str, grid: str, budgets: int, sizes: int, noise: float, draws: int, first: int) -> list[dict[str, Any]]:
    seen: dict[str, list[tuple[bool, float, float]]] = {}
    for seed in range(first, first + draws):
        for name, estimate, truth in estimates(draw(LAWS[law], grid, budgets, sizes, noise, seed), LAWS[law], seed):
            if estimate is not None:
                low = -math.inf if estimate.low is None else estimate.low
                high = math.inf if estimate.high is None else estimate.high
                told = (low <= truth <= high, estimate.value - truth, (high - low) / 2)
                seen.setdefault(name, []).append(told)
    where = {"law": law, "grid": grid, "budgets": budgets, "sizes": sizes, "noise": noise}
    return [where | _share(name, rows) for name, rows in seen.items()]


def _share(name: str, rows: list[tuple[bool, float, float]]) -> dict[str, Any]:
    covered, error, half = (np.array(column, float) for column in zip(*rows))
    share = float(covered.mean())
    finite = half[np.isfinite(half)]
    return {
        "what": name,
        "draws": len(rows),
        "covered": share,
        "standard_error": math.sqrt(max(share * (1 - share), 0.25 / len(rows)) / len(rows)),
        "median_error": float(np.median(error)),
        "median_half_width": float(np.median(finite)) if len(finite) else None,
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first draw")
    parser.add_argument("--laws", nargs="+", default=list(LAWS))
    parser.add_argument("--grids", nargs="+", default=[*GRIDS, "ladder"])
    parser.add_argument("--designs", nargs="+", default=["4x5", "5x7"], help="budgets x sizes")
    parser.add_argument("--noises", nargs="+", type=float, default=[0.001, 0.005, 0.02])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for law, grid, design, noise in product(options.laws, options.grids, options.designs, options.noises):
        budgets, sizes = map(int, design.split("x"))
        began = time.perf_counter()
        rows += (found := cell(law, grid, budgets, sizes, noise, options.draws, options.first))
        print(
            f"{law}, {grid}, {budgets} budgets x {sizes} sizes, noise {noise:.1%} ({time.perf_counter() - began:.0f} s)"
        )
        for r in found:
            half = "" if r["median_half_width"] is None else f"{r['median_half_width']:9.4f}"
            share = f"{100 * r['covered']:5.1f} +- {100 * r['standard_error']:.1f} %"
            print(f"  {r['what']:24} {share}  error {r['median_error']:+8.4f}  half-width {half}", flush=True)
    if options.json:
        write_json(options.json, {"resamples": RESAMPLES, "rows": rows})


if __name__ == "__main__":
    main()
