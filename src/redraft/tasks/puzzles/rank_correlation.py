"""Does the loss say who answers right? Rank correlation of loss and right answers (Goodman and Kruskal's gamma), across
families, between each two, and within one.

"Scaling Beyond Masked Diffusion Language Models" (arXiv:2602.15014) finds likelihood informative within a family and
misleading across families. Pairs of runs are compared on the same questions (one puzzle, one seed): of two families at equal
steps, so at equal data, network and FLOPs; or of one family at different steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
Run = dict[str, Any]


def rank_correlations(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """`runs` have `puzzle`, `seed`, `family`, `steps`, `loss` and `answers`. A row across families, one for each two of them,
    and one within each."""
    names = list(dict.fromkeys(run["family"] for run in runs))
    rows = [{"of": "across families"} | _interval(_signs(runs, _across))]
    for two in combinations(names, 2) if len(names) > 2 else ():
        both = [run for run in runs if run["family"] in two]
        rows.append({"of": " and ".join(two)} | _interval(_signs(both, _across)))
    for name in names:
        mine = [run for run in runs if run["family"] == name]
        rows.append({"of": f"within {name}"} | _interval(_signs(mine, _within)))
    return rows


def _across(a: Run, b: Run) -> bool:
    return a["family"] != b["family"] and a["steps"] == b["steps"]


def _within(a: Run, b: Run) -> bool:
    return a["family"] == b["family"] and a["steps"] != b["steps"]


def share_right(run: Run) -> float:
    """Over all questions, answered in the largest number of sampling steps."""
    most = max(cell["sampling_steps"] or float("inf") for cell in run["answers"])
    cells = [cell for cell in run["answers"] if (cell["sampling_steps"] or float("inf")) == most]
    return sum(cell["right"] for cell in cells) / sum(cell["asked"] for cell in cells)


def _signs(runs: Sequence[Run], compared: Any) -> NDArray[np.float64]:
    """[puzzles, 2]: of each puzzle, pairs of one seed in which the lower loss has more right answers less those in which it
    has fewer, and pairs that differ in both."""
    out = []
    for puzzle in dict.fromkeys(run["puzzle"] for run in runs):
        signs = [
            np.sign(b["loss"] - a["loss"]) * np.sign(share_right(a) - share_right(b))
            for a, b in combinations([run for run in runs if run["puzzle"] == puzzle], 2)
            if a["seed"] == b["seed"] and compared(a, b)
        ]
        out.append((sum(signs), sum(sign != 0 for sign in signs)))
    return np.array(out, np.float64)


def _interval(signs: NDArray[np.float64]) -> dict[str, Any]:
    """Concordant less discordant pairs, of those that differ in both; 95 % by resampling puzzles, in which the seeds share
    what is hard. None where no pair differs."""
    total, pairs = signs.sum(0)
    if not pairs:
        return {"value": None, "low": None, "high": None, "pairs": 0, "puzzles": len(signs)}
    drawn = np.random.default_rng(0).integers(len(signs), size=(RESAMPLES, len(signs)))
    sums = signs[drawn].sum(1)
    found = sums[sums[:, 1] > 0]
    low, high = np.quantile(found[:, 0] / found[:, 1], (0.025, 0.975))
    return {"value": total / pairs, "low": low, "high": high, "pairs": int(pairs), "puzzles": len(signs)}


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    from redraft.tasks.table import cell, table

    shown = [[row["of"], cell(row if row["pairs"] else None), str(row["pairs"]), str(row["puzzles"])] for row in rows]
    return table(["rank correlation of loss and right answers", "gamma", "pairs", "puzzles"], shown)
