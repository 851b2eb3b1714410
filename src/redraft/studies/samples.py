"""The frontier of a study: its best run of each family samples at every setting, and a judge scores what comes out.

Writes `frontier.jsonl` (one measurement a line) and `samples.jsonl` (one text of each family and setting). What is
already measured is not measured again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.files import disk
from redraft.registry import SAMPLERS
from redraft.studies.execute import RUNS
from redraft.studies.frontier import FRONTIER, SAMPLES, TEXT
from redraft.studies.plan import JUDGE, FrontierConfig, Study

if TYPE_CHECKING:
    from redraft.hub.model import Model


def measure(study: Study, folder: Path, records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields each new measurement. Call it when nothing else runs on the machine: it takes times."""
    import torch

    from redraft.hub.model import load

    settings, threads = study.config.frontier, study.runs[0].config.train.threads
    assert settings is not None
    if threads:
        torch.set_num_threads(threads)  # small networks are timed as they were trained
    judge = load(folder / RUNS / next(r["name"] for r in records if r["arm"] == JUDGE))
    done = {_key(row) for row in _read(folder / FRONTIER)}
    if (TEXT, 0, 1.0) not in done:
        yield _keep(folder, _held_out(judge, study, settings), None)
    for record in _best(records):
        model = load(folder / RUNS / record["name"])
        for steps in _steps(model, settings):
            for temperature in settings.temperatures:
                if (record["family"], steps, temperature) not in done:
                    row, text = _point(model, judge, record, steps, temperature, settings)
                    yield _keep(folder, row, text)


def _best(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each family's own arm, the run of lowest loss, dearest budget first among equals."""
    best: dict[str, dict[str, Any]] = {}
    for record in sorted(records, key=lambda r: (r["loss"], r["name"])):
        if record["arm"] == record["family"]:
            best.setdefault(record["family"], record)
    return [best[family] for family in sorted(best)]


def _steps(model: Model, settings: FrontierConfig) -> list[int]:
    """Left to right has no choice of steps: one a token."""
    chosen = "steps" in SAMPLERS[model.family.sampler].options
    return settings.steps if chosen else [settings.length]


def _point(
    model: Model, judge: Model, record: dict[str, Any], steps: int, temperature: float, settings: FrontierConfig
) -> tuple[dict[str, Any], str]:
    from redraft.evaluation.generation import generate, quality

    made = generate(model, settings.samples, settings.length, steps, temperature)
    row = {
        "family": record["family"],
        "name": record["name"],
        "sampler": model.family.sampler,
        "steps": steps,
        "temperature": temperature,
        "tokens_per_second": made.tokens_per_second,
        "nfe": made.forwards,
        **_scores(quality(made.tokens, judge)),
        "samples": settings.samples,
        "batch": settings.samples,
        "length": settings.length,
    }
    return row, model.tokenizer.decode(made.tokens[0].tolist())


def _held_out(judge: Model, study: Study, settings: FrontierConfig) -> dict[str, Any]:
    """The same measures of real held-out text: what samples should look like."""
    import torch

    from redraft.evaluation.generation import quality
    from redraft.text.packing import ordered_windows
    from redraft.text.prepare import prepare_cached

    data = study.runs[0].config.data
    corpus = prepare_cached(data.source, judge.tokenizer, validation=data.validation)
    windows = torch.from_numpy(ordered_windows(corpus.split("validation"), settings.length, 4 * settings.samples))
    scores = _scores(quality(windows, judge))
    return {
        "family": TEXT,
        "steps": 0,
        "temperature": 1.0,
        **scores,
        "samples": len(windows),
        "length": settings.length,
    }


def _scores(of: Any) -> dict[str, float]:
    return {
        "quality": of.nats, "quality_se": of.nats_se, "entropy": of.entropy, "entropy_se": of.entropy_se,
        "distinct_2": of.distinct_2,
    }  # fmt: skip


def _keep(folder: Path, row: dict[str, Any], text: str | None) -> dict[str, Any]:
    """The sample first: a measurement that is recorded has its sample recorded."""
    if text is not None:
        told = {k: row[k] for k in ("family", "name", "steps", "temperature", "nfe")}
        _append(folder / SAMPLES, {**told, "text": text})
    _append(folder / FRONTIER, row)
    return row


def _append(path: Path, row: dict[str, Any]) -> None:
    with disk(path.parent), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    """Whole lines; a torn last one, left by a kill, is cut off."""
    if not path.exists():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    path.write_text("".join(lines), encoding="utf-8")
    return [json.loads(line) for line in lines]


def _key(row: dict[str, Any]) -> tuple[str, int, float]:
    return row["family"], row["steps"], row["temperature"]
