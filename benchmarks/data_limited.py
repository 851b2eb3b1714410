"""A fixed small corpus, read 1 to 100 times: AR with and without dropout and weight decay, MDLM and Duo. Who wins when?

The corpus is a short passage of each of many books; validation is other books. One network and one budget for all, so equal
FLOPs are equal passes over the data. AR's dropout and weight decay are chosen first, on a seed of their own, at the longest
training but one. Losses are exact for AR, bounds for MDLM and Duo; MDLM's exact likelihood when it writes the surest
position first (margin, arXiv:2603.01367) is beside its bound. Studies of redraft do the work: what is there is not done again.

    python benchmarks/data_limited.py --data-dir DATA --into F --json docs/results/data-limited.json \\
        --figure docs/results/figures/data-limited.svg
"""

from __future__ import annotations

import argparse
import itertools
import json
import lzma
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from redraft.commands.study_queue import carry_out
from redraft.files import write_text
from redraft.planning.study import plan_study
from redraft.report import theme
from redraft.studies import execute
from redraft.tasks.intervals import Interval, of_mean

EPOCHS = (1, 3, 10, 30, 100)
DROPOUT, DECAY = (0.1, 0.3), (0.1, 1.0)
RATES = {"ar": 8e-3, "mdlm": 5e-3, "duo": 4e-3}  # those of the recipe books-grid
NAMES = {
    "ar": "AR",
    "ar-regularised": "AR, dropout and weight decay",
    "mdlm": "MDLM, bound",
    "mdlm-exact": "MDLM, exact",
    "duo": "Duo, bound",
}
LENGTH, PASSAGE = 128, 1024

Table = dict[str, Any]


def write_corpus(books: Path, tokens: int, into: Path) -> None:
    """A passage of each book, from its middle, until there are `tokens` of them, with an end of text after each."""
    chosen = itertools.islice(passages(books), tokens // PASSAGE)
    write_text(into, "".join(json.dumps({"text": passage}) + "\n" for passage in chosen))


def passages(books: Path) -> Iterator[str]:
    for file in sorted(books.glob("train_0*.jsonl.xz")):
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line)["text"]
                yield text[len(text) // 2 :].encode()[: PASSAGE - 1].decode(errors="ignore")


def base(args: argparse.Namespace) -> Table:
    train = {"batch": 8, "warmup": 20, "schedule": "wsd", "threads": 1, "precision": "float32", "save_every": 2000}
    return {
        "data": {
            "source": str(args.into.resolve() / "corpus.jsonl"),
            "validation": str(args.data_dir.resolve() / "books" / "valid.jsonl.xz"),
            "tokenizer": "bytes",
            "length": LENGTH,
        },
        "network": {"block": "dit", "cond": 8},
        "evaluate": {"rows": 384, "draws": 4, "batch": 64},
        "train": train,
    }


def arm(args: argparse.Namespace, name: str, epochs: Sequence[int], seeds: Sequence[int], **train: Any) -> Table:
    family = name.partition("-")[0]
    flops = [float(f"{number * args.tokens * args.per_token:.4g}") for number in epochs]
    own = {"name": name, "families": [family], "sizes": [args.size], "flops": flops, "seeds": list(seeds)}
    return own | {"reuse": len(flops) > 1, "set": {"train": {"lr": RATES[family], **train}}}


def per_token(args: argparse.Namespace) -> float:
    """FLOPs a token of training (blocks+head): every family has the same network."""
    one = {"families": ["ar"], "sizes": [args.size], "flops": [1e12], "seeds": [0]}
    (run,) = plan_study({"title": "one", "base": base(args), "arm": [one]}).runs
    return run.budget.flops["blocks+head"] / run.budget.tokens


def study(args: argparse.Namespace, name: str, arms: list[Table]) -> list[Table]:
    """Carry the arms out; a row a run: arm, passes over the data, seed, loss, folder (none of a run that diverged)."""
    carry_out(
        {"title": name, "workers": args.workers, "base": base(args), "arm": arms}, args.into / name, diverged=True
    )
    states = execute.status(execute.read_study(args.into / name), args.into / name)
    rows = [
        (one.run.arm, one.run.budget.tokens, one.run.config.seed, one.loss, one.run.name)
        for one in states
        if one.loss is not None
    ]
    names = ("arm", "epochs", "seed", "loss", "run")
    return [dict(zip(names, (arm, round(tokens / args.tokens), *rest))) for arm, tokens, *rest in rows]


def regularisation(args: argparse.Namespace) -> Table:
    """Dropout and weight decay that are best for AR after the longest training but one, on a seed of their own."""
    tried = {f"ar-{drop:g}-{decay:g}": {"dropout": drop, "weight_decay": decay} for drop in DROPOUT for decay in DECAY}
    arms = [arm(args, name, EPOCHS[-2:-1], [args.seeds], **how) for name, how in tried.items()]
    best = min(study(args, "regularisation", arms), key=lambda row: row["loss"])
    return tried[best["arm"]]


def exact(args: argparse.Namespace, row: Table) -> float:
    """-log p, nats per token, of MDLM that writes the surest position first, on 128 rows."""
    out = args.into / "exact" / f"{row['run']}.json"  # a name has points of its own
    if not out.exists():
        out.parent.mkdir(exist_ok=True)
        words = ["--estimator", "chain_rule", "--order", "margin", "--rows", "128", "--out", str(out)]
        command = [sys.executable, "-m", "redraft", "eval", str(args.into / "grid" / "runs" / row["run"]), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return float(json.loads(out.read_text())["nats"])


def summary(rows: list[Table]) -> list[Table]:
    """A cell an arm and number of passes: the mean over seeds with its interval, and what it is above AR, paired by seed."""
    cells = []
    for name, epochs in sorted({(row["arm"], row["epochs"]) for row in rows}):
        own = {r["seed"]: r["loss"] for r in rows if (r["arm"], r["epochs"]) == (name, epochs)}
        ar = {r["seed"]: r["loss"] for r in rows if (r["arm"], r["epochs"]) == ("ar", epochs)}
        above = of_mean([own[seed] - ar[seed] for seed in own.keys() & ar.keys()])
        cells.append(
            {"arm": name, "epochs": epochs, "loss": vars(of_mean(list(own.values()))), "above_ar": vars(above)}
        )
    return cells


def figure(cells: list[Table]) -> theme.Figure:
    shown = []
    for cell in cells:
        text = f"{NAMES[cell['arm']]}, {cell['epochs']} passes: {cell['loss']['value']:.3f} nats/token"
        y = {"y": cell["loss"]["value"], "low": cell["loss"]["low"], "high": cell["loss"]["high"]}
        shown.append({"x": cell["epochs"], **y, "kind": NAMES[cell["arm"]], "d": text})
    x = theme.x_axis("passes over the data").axis(values=list(EPOCHS))
    ends = [0.98 * min(row["low"] for row in shown), 1.02 * max(row["high"] for row in shown)]
    axis = alt.Axis(values=[2, 2.2, 2.5, 3, 3.5, 4, 5, 6])
    y = alt.Y("y:Q", title="held-out nats/token", scale=alt.Scale(type="log", domain=ends, nice=False), axis=axis)
    colours = alt.Scale(domain=list(NAMES.values()), range=list(theme.COLOURS[: len(NAMES)]))
    colour = alt.Color("kind:N", title=None, scale=colours, legend=alt.Legend(orient="top", labelLimit=400, columns=3))
    layers = (theme.lines(shown, x, y, colour), theme.bars(shown, x, colour), theme.points(shown, x, y, colour))
    caption = "Held-out loss after so many passes over a fixed corpus; bars are 95 % over seeds."
    return theme.Figure(
        "data-limited", "A fixed small corpus, read again and again", caption, (theme.panel(*layers, width=520),)
    )


def show(cells: list[Table], chosen: Table) -> None:
    print(f"AR's regularisation: dropout {chosen['dropout']:g}, weight decay {chosen['weight_decay']:g}")
    print(f"{'arm':16} {'passes':>6}  {'held-out nats/token':26} above AR")
    for cell in cells:
        loss, above = (Interval(**cell[key]).text(3) for key in ("loss", "above_ar"))
        print(f"{cell['arm']:16} {cell['epochs']:6}  {loss:26} {above}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--into", type=Path, default=Path("runs/data-limited"))
    parser.add_argument("--size", default="80k")
    parser.add_argument("--tokens", type=int, default=32 * PASSAGE, help="of the corpus")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    args.into.mkdir(parents=True, exist_ok=True)
    write_corpus(args.data_dir / "books", args.tokens, args.into / "corpus.jsonl")
    args.per_token = per_token(args)
    chosen, seeds = regularisation(args), range(args.seeds)
    how = {"ar": {}, "ar-regularised": chosen, "mdlm": {}, "duo": {}}
    rows = study(args, "grid", [arm(args, name, EPOCHS, seeds, **train) for name, train in how.items()])
    rows += [{**row, "arm": "mdlm-exact", "loss": exact(args, row)} for row in rows if row["arm"] == "mdlm"]
    cells = summary(rows)
    show(cells, chosen)
    if args.json:
        said = {"size": args.size, "tokens": args.tokens, "regularisation": chosen, "rates": RATES}
        write_text(args.json, json.dumps(said | {"cells": cells, "runs": rows}, indent=1) + "\n")
    if args.figure:
        write_text(args.figure, figure(cells).svg())
        args.figure.with_suffix(".png").write_bytes(figure(cells).png())


if __name__ == "__main__":
    main()
