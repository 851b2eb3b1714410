"""Temporal shift: models of the older text, read on the newer. SMDM, arXiv:2410.18514, section 4.5 (FineWeb of 2024).

The paper compares perplexities on newer text at equal loss on text of the training's time, with more compute for diffusion.
Raw gaps flatter whoever is worse trained, so every family is trained at several budgets here, each budget a point (loss on
older text, loss on newer text), and families are compared where their losses on older text are the same: between two points,
newer loss runs linearly in older loss. Outside the losses that both reached, nothing is said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from redraft.errors import UserError
from redraft.evaluation.compute import AUTO, Compute
from redraft.files import make_folder, read_json, write_text
from redraft.tasks.intervals import of_mean
from redraft.tasks.runs import Job, grid, kept
from redraft.text.sources.formats import read_records

BASE: dict[str, Any] = {
    "network": {"block": "dit", "depth": 2, "heads": 4, "width": 64, "cond": 32},
    "data": {"length": 128, "tokenizer": "bytes", "format": "text"},
    "train": {"batch": 16, "lr": 3e-3, "precision": "float32", "threads": 1, "save_every": 500},
    "evaluate": {"rows": 256, "draws": 4},
}
NEWER = "newer.json"
WORDS = {"older": "older", "older_valid": "left to validate on (ten older ones are needed)", "newer": "newer"}


@dataclass(frozen=True)
class Shift:
    """`older` and `newer` are sources of text; without one for `validation`, a share of the older documents is held out."""

    into: Path
    older: str
    newer: str
    validation: str | None = None
    families: tuple[str, ...] = ("ar", "mdlm", "duo", "esolm")
    seeds: int = 2
    first: int = 0
    steps: tuple[int, ...] = (150, 300, 600)
    over: dict[str, Any] | None = None
    compute: Compute = AUTO

    def jobs(self) -> list[Job]:
        data = {"source": self.older, **({"validation": self.validation} if self.validation else {})}
        out = []
        for seed in range(self.first, self.first + self.seeds):
            out += grid(BASE, data, seed, self.steps, self.families, self.over or {}, self.into)
        return out

    def measure(self) -> Iterator[dict[str, Any]]:
        """Each run's losses on older and on newer text, the same rows and noise for all."""
        for done in self.jobs():
            yield kept(done.folder / NEWER, partial(self.losses, done))

    def losses(self, done: Job) -> dict[str, Any]:
        from redraft.evaluation.likelihood.nelbo import bound
        from redraft.text.shards.packing import ordered_windows
        from redraft.text.shards.prepare import prepare_cached

        model, config, record = self.compute.load(done.folder), done.config, read_json(done.folder / "record.json")
        # Nobody trains on it: "train" is the larger of its two splits.
        newer = prepare_cached(self.newer, model.tokenizer).split("train")
        windows = ordered_windows(newer, config.data.length, config.evaluate.rows)
        found = bound(model.network, model.family, windows, config.evaluate.draws, config.evaluate.batch)
        keep = ("family", "seed", "steps", "params", "flops", "loss_kind")
        older = {"older": record["loss"], "older_se": record["loss_sampling_se"]}
        newer_text = {"newer": found.nats, "newer_se": found.sampling_error}
        return {key: record[key] for key in keep} | older | newer_text | self.compute.record(model)


def by_year(files: Sequence[Path], before: int, after: int, folder: Path) -> tuple[str, str, str]:
    """Documents with a "year" as three files: older to train on, older to validate on, newer. Their paths.

    Older: written before the year `before`; of those every tenth is to validate on. Newer: in `after` or later. What lies
    between is left out, and so is what has no year that is a number. `UserError` where a part is empty.
    """
    older: list[str] = []
    newer: list[str] = []
    for path in files:
        for _, row in read_records(path):
            year = _year(row.get("year")) if isinstance(row, Mapping) else None
            if isinstance(row, Mapping) and year is not None and not before <= year < after:
                (newer if year >= after else older).append(json.dumps({"text": row["text"]}, ensure_ascii=False))
    held_out = older[9::10]
    del older[9::10]
    parts = {"older": older, "older_valid": held_out, "newer": newer}
    for name, documents in parts.items():
        if not documents:
            raise UserError(f"no document is {WORDS[name]}: give other years than {before} and {after}")
    place = folder / sha256("\n".join(d for some in parts.values() for d in some).encode()).hexdigest()[:12]
    make_folder(place)
    for name, documents in parts.items():
        if not (place / f"{name}.jsonl").exists():
            write_text(place / f"{name}.jsonl", "\n".join(documents) + "\n")
    return str(place / "older.jsonl"), str(place / "older_valid.jsonl"), str(place / "newer.jsonl")


def _year(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def matched(runs: Sequence[dict[str, Any]], reference: str, family: str) -> dict[str, Any] | None:
    """newer(family) - newer(reference) at equal loss on older text, mean over the seeds at which the two ranges meet.

    Of a seed: the mean difference over the losses that both reached. None where they meet at no seed.
    """
    found: list[float] = []
    where: list[tuple[float, float]] = []
    for seed in sorted({run["seed"] for run in runs}):
        ours, theirs = (_curve(runs, name, seed) for name in (family, reference))
        low, high = max(ours[0][0], theirs[0][0]), min(ours[-1][0], theirs[-1][0])
        if low <= high:
            older = np.linspace(low, high, 9)
            our_newer, their_newer = (np.interp(older, *np.array(curve).T) for curve in (ours, theirs))
            found.append(float(np.mean(our_newer - their_newer)))
            where.append((low, high))
    if not found:
        return None
    mean = of_mean(found)
    out = {"family": family, "reference": reference, "difference": mean.value, "by_seed": found, "seeds": len(found)}
    ends = [end if math.isfinite(end) else None for end in (mean.low, mean.high)]
    return out | {"low": ends[0], "high": ends[1], "from": max(a for a, _ in where), "to": min(b for _, b in where)}


def _curve(runs: Sequence[dict[str, Any]], family: str, seed: int) -> list[tuple[float, float]]:
    return sorted((run["older"], run["newer"]) for run in runs if (run["family"], run["seed"]) == (family, seed))


def lines(runs: Sequence[dict[str, Any]]) -> list[str]:
    from redraft.tasks.table import table

    keys = dict.fromkeys((run["family"], run["steps"]) for run in sorted(runs, key=lambda r: (r["family"], r["steps"])))
    body = []
    for family, steps in keys:
        some = [run for run in runs if (run["family"], run["steps"]) == (family, steps)]
        older, newer = (of_mean([run[key] for run in some]).value for key in ("older", "newer"))
        body.append([family, f"{steps}", f"{older:.3f}", f"{newer:.3f}", f"{newer - older:+.3f}", some[0]["loss_kind"]])
    out = table(["family", "steps", "older", "newer", "gap", "kind"], body)
    families = dict.fromkeys(run["family"] for run in runs)
    for family in (name for name in families if name != "ar" and "ar" in families):
        found = matched(runs, "ar", family)
        if found is None:
            out.append(f"{family}: no loss on older text that both it and ar reached.")
        else:
            each = " ".join(f"{value:+.3f}" for value in found["by_seed"])
            out.append(f"{family} less ar on newer text, at equal loss on older text: {each} by seed.")
    return out
