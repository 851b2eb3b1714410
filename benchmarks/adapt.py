"""What an AR model that exists is worth to a diffusion model: adapted against trained from scratch, on books.

An AR model of compute C, then MDLM, BD3-LM, Duo and Eso-LM made of it with C/16 to C/2 more, beside the same families from
scratch at equal *additional* and at equal *total* compute; for MDLM also attention that opens by a schedule, and predictions
one place earlier. Learning rates are chosen first, by family, for fresh and for trained weights apart, on a seed of their own.
Studies of redraft do the work: what is there is not done again.

    python benchmarks/adapt.py --data-dir DATA --into F --json docs/results/adapt.json --figure docs/results/figures/adapt.svg
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import altair as alt
from scipy import stats

from redraft.commands.study_queue import carry_out
from redraft.files import write_text
from redraft.report import theme
from redraft.scaling.results import label
from redraft.studies import execute

FAMILIES = ("mdlm", "bd3lm", "duo", "esolm")
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
TRIED, TUNING = (
    (0.25, 0.5, 1.0, 2.0, 4.0),
    1 / 8,
)  # learning rates as multiples of --lr; the share of C to compare them at
VARIANTS = {
    "at once": {"family": "mdlm", "adapt": {"open": 0.0}},
    "by schedule": {"family": "mdlm", "adapt": {"open": 0.1}},
    "shift, at once": {"family": {"name": "mdlm", "shift": True}, "adapt": {"open": 0.0}},
    "shift, by schedule": {"family": {"name": "mdlm", "shift": True}, "adapt": {"open": 0.1}},
}

Table = dict[str, Any]


def base(args: argparse.Namespace) -> Table:
    books = args.data_dir.resolve() / "books"
    data = {"source": str(books / "train_0*.jsonl.xz"), "validation": str(books / "valid.jsonl.xz")}
    train = {"batch": 8, "warmup": 20, "schedule": "wsd", "threads": 1, "precision": "float32", "save_every": 2000}
    return {
        "data": {**data, "tokenizer": "bytes", "length": 128},
        "network": {"block": "dit", "cond": 32},
        "evaluate": {"rows": 384, "draws": 4, "batch": 64},
        "train": {**train, "lr": args.lr},
    }


def study(args: argparse.Namespace, name: str, arms: list[Table]) -> dict[str, float]:
    """Carry the arms out; name of a run -> held-out loss, nats per token."""
    table = {"title": name, "workers": args.workers, "base": base(args), "arm": arms}
    carry_out(table, args.into / name, diverged=True)
    runs = execute.status(execute.read_study(args.into / name), args.into / name)
    return {one.run.name: one.loss for one in runs if one.loss is not None}


def arm(
    args: argparse.Namespace, name: str, family: Any, shares: Any, seed: int, reuse: bool = True, **train: Any
) -> Table:
    flops = [float(f"{share * args.flops:.4g}") for share in shares]
    own = {"name": name, "families": [family], "sizes": [args.size], "flops": flops, "seeds": [seed]}
    return own | {"reuse": reuse and len(flops) > 1, "set": {"train": train}}


def run_name(args: argparse.Namespace, name: str, share: float, seed: int) -> str:
    return f"{name}-{args.size}-{float(f'{share * args.flops:.4g}'):.3g}-s{seed}".replace("+", "")


def start(args: argparse.Namespace, seed: int) -> str:
    """The folder of the AR model of a seed."""
    return str((args.into / "ar" / "runs" / run_name(args, "ar", 1.0, seed)).resolve())


def rates(args: argparse.Namespace, seed: int) -> dict[tuple[str, str], float]:
    """(family, "fresh" or "adapted") -> the learning rate of the lowest loss after C/8."""
    arms, tried = [], {}
    for family, factor in itertools.product(FAMILIES, TRIED):
        lr = args.lr * factor
        for kind, more in (("fresh", {}), ("adapted", {"init_from": start(args, seed), "adapt": {"open": 0.0}})):
            name = f"{family}-{kind}-{factor:g}"
            tried[family, kind, lr] = run_name(args, name, TUNING, seed)
            arms.append(arm(args, name, family, [TUNING], seed, lr=lr, **more))
    scores = study(args, "rates", arms)
    best: dict[tuple[str, str], float] = {}
    for (family, kind, lr), name in tried.items():
        so_far = scores.get(tried.get((family, kind, best.get((family, kind), 0.0)), ""), math.inf)
        if scores.get(name, math.inf) < so_far:
            best[family, kind] = lr
    return best


def table_of(args: argparse.Namespace, best: dict[tuple[str, str], float]) -> list[Table]:
    """A row a run: family, kind, share of C that was added, seed, loss."""
    fresh, adapted, cells = [], [], {}
    later = [1 + share for share in SHARES]
    for seed, family in itertools.product(range(args.seeds), FAMILIES):
        fresh.append(arm(args, family, family, [*SHARES, *later], seed, lr=best[family, "fresh"]))
        how = {"init_from": start(args, seed), "lr": best[family, "adapted"]}
        adapted.append(arm(args, f"{family}-{seed}", family, SHARES, seed, **how, adapt={"open": 0.0}))
        for share in (*SHARES, *later):
            cells["fresh", run_name(args, family, share, seed)] = (family, "fresh", share, seed)
        for share in SHARES:
            cells["adapted", run_name(args, f"{family}-{seed}", share, seed)] = (family, "adapted", share, seed)
    for seed, (variant, how) in itertools.product(range(args.seeds), list(VARIANTS.items())[1:]):
        name = f"mdlm-{variant.replace(', ', '-').replace(' ', '-')}-{seed}"
        own = {"init_from": start(args, seed), "lr": best["mdlm", "adapted"], "adapt": how["adapt"]}
        adapted.append(arm(args, name, how["family"], SHARES, seed, reuse=not how["adapt"]["open"], **own))
        for share in SHARES:
            cells["adapted", run_name(args, name, share, seed)] = ("mdlm", variant, share, seed)
    found = {("fresh", n): v for n, v in study(args, "fresh", fresh).items()}
    found |= {("adapted", n): v for n, v in study(args, "adapted", adapted).items()}
    rows = [(*cell, found[key]) for key, cell in cells.items() if key in found]
    return [dict(zip(("family", "kind", "share", "seed", "loss"), row)) for row in rows]


def mean(values: list[float]) -> Table:
    """Mean and 95 % interval by Student's t over seeds."""
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": fmean(values), "low": fmean(values) - half, "high": fmean(values) + half, "seeds": len(values)}


def losses(rows: list[Table], family: str, kind: str, seed: int) -> dict[float, float]:
    """Share of C -> loss."""
    return {r["share"]: r["loss"] for r in rows if (r["family"], r["kind"], r["seed"]) == (family, kind, seed)}


def by_seed(rows: list[Table], family: str, kind: str, share: float) -> dict[int, float]:
    return {r["seed"]: r["loss"] for r in rows if (r["family"], r["kind"], r["share"]) == (family, kind, share)}


def worth(rows: list[Table], family: str, kind: str, share: float, seed: int) -> tuple[float, bool]:
    """ln of the share of C that the family needs from scratch for the loss of an adapted run, linear in ln C between the runs
    of the same seed, and whether they have that loss between them; if not, the nearest end of what was trained."""
    curve = sorted(losses(rows, family, "fresh", seed).items())
    loss = losses(rows, family, kind, seed)[share]
    for (a, high), (b, low) in itertools.pairwise(curve):
        if low <= loss <= high:
            return math.log(a) + math.log(b / a) * (high - loss) / (high - low), True
    return math.log(curve[-1][0] if loss < curve[-1][1] else curve[0][0]), False


def summary(args: argparse.Namespace, rows: list[Table]) -> list[Table]:
    out = []
    kinds = [(family, "adapted") for family in FAMILIES] + [("mdlm", variant) for variant in list(VARIANTS)[1:]]
    for (family, kind), share in itertools.product(kinds, SHARES):
        own = by_seed(rows, family, kind, share)
        equal, total = (by_seed(rows, family, "fresh", s) for s in (share, 1 + share))
        seeds = sorted(own.keys() & equal.keys() & total.keys())
        if not seeds:
            continue
        logs = [worth(rows, family, kind, share, seed) for seed in seeds]
        factor = mean([log - math.log(share) for log, _ in logs])
        out.append({
            "family": family, "kind": kind, "share": share, "loss": mean([own[s] for s in seeds]),
            "less_equal_additional": mean([own[s] - equal[s] for s in seeds]),
            "less_equal_total": mean([own[s] - total[s] for s in seeds]),
            "factor_additional": {k: v if k == "seeds" else math.exp(v) for k, v in factor.items()},
            "inside": all(inside for _, inside in logs),
        })  # fmt: skip
    return out


def figure(rows: list[Table]) -> theme.Figure:
    """A panel a family: loss against the compute that is spent on the family itself."""
    panels = []
    domain = [min(r["loss"] for r in rows), max(r["loss"] for r in rows)]
    for family in FAMILIES:
        shown = []
        for kind in ("fresh", "adapted"):
            for share in sorted({r["share"] for r in rows if (r["family"], r["kind"]) == (family, kind)}):
                m = mean(list(by_seed(rows, family, kind, share).values()))
                name = "from scratch" if kind == "fresh" else "adapted from AR"
                text = f"{family}, {name}, {share:.3g} C: {m['mean']:.3f} nats/token"
                shown.append({"x": share, "y": m["mean"], "low": m["low"], "high": m["high"], "kind": name, "d": text})
        x = theme.x_axis("compute spent on this family / that of the AR model").axis(format="~g", tickCount=5)
        y = alt.Y("y:Q", title="held-out nats/token", scale=alt.Scale(domain=domain, zero=False))
        two = alt.Scale(range=list(theme.COLOURS[:2]))
        colour = alt.Color("kind:N", title=None, scale=two, legend=alt.Legend(orient="top"))
        layers = (
            theme.lines(shown, x, y, colour),
            theme.bars(shown, x, colour, clip=True),
            theme.points(shown, x, y, colour),
        )
        panels.append(theme.panel(*layers, title=label(family), width=300, height=220))
    caption = "Held-out bound against the compute spent on the family, as a share of the AR model's; bars are 95 % over seeds."
    return theme.Figure("adapt", "An AR model adapted, and the same family from scratch", caption, tuple(panels))


def show(best: dict[tuple[str, str], float], cells: list[Table]) -> None:
    print("learning rates: " + "; ".join(f"{f} {k} {lr:.2g}" for (f, k), lr in sorted(best.items())))
    three = lambda m: f"{m['mean']:.3g} ({m['low']:.3g} to {m['high']:.3g})"
    heads = f"{'loss':24} {'less equal additional':26} {'less equal total':26} factor of additional compute"
    print(f"{'family':7} {'kind':19} {'share':>6}  {heads}")
    for c in cells:
        inside = "" if c["inside"] else " (not all within what was trained)"
        print(
            f"{c['family']:7} {c['kind']:19} {c['share']:6.3g}  {three(c['loss']):24} "
            f"{three(c['less_equal_additional']):26} {three(c['less_equal_total']):26} "
            f"{three(c['factor_additional'])}{inside}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--into", type=Path, default=Path("runs/adapt"))
    parser.add_argument("--size", default="301k")
    parser.add_argument("--flops", type=float, default=1e12, help="C, the compute of the AR model (blocks+head)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--lr", type=float, default=4e-3, help="learning rate of AR, and the middle of those that are tried"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    seeds = range(args.seeds + 1)  # the last one is for learning rates alone
    judged = study(args, "ar", [arm(args, "ar", "ar", [1.0], seed) for seed in seeds])
    best = rates(args, args.seeds)
    rows = table_of(args, best)
    cells = summary(args, rows)
    print("AR: " + ", ".join(f"{loss:.4f}" for loss in judged.values()))
    show(best, cells)
    if args.json:
        said = {"size": args.size, "flops": args.flops, "convention": "blocks+head", "ar": judged}
        said |= {"cells": cells, "runs": rows}
        said["rates"] = [{"family": f, "kind": k, "lr": lr} for (f, k), lr in best.items()]
        write_text(args.json, json.dumps(said, indent=1) + "\n")
    if args.figure:
        write_text(args.figure, figure(rows).svg())
        args.figure.with_suffix(".png").write_bytes(figure(rows).png())


if __name__ == "__main__":
    main()
