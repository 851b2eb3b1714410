"""Measuring: every setting once, resumable, under one judge, in the shape that the frontier reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from redraft.errors import UserError
from redraft.evaluation.compute import Compute
from redraft.evaluation.generation.evaluators import RedraftEvaluator
from redraft.frontier.matched_entropy import match
from redraft.frontier.measure import Bench, Checkpoint, measure_models
from redraft.frontier.pareto import FRONTIER, SAMPLES, load_frontier
from redraft.hub.model import load
from redraft.planning.frontier import FrontierConfig
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out
from tests.small_runs import corpus, tiny

SETTINGS = FrontierConfig(
    judge="judge", samples=6, length=16, steps=[2, 4], temperatures=[0.7, 1.0, 1.5], batches=[2, 6], repeats=2, keep=2
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    source, out = corpus(tmp_path_factory.mktemp("prose")), {}
    for family in ("ar", "mdlm"):
        out[family] = tmp_path_factory.mktemp("models") / family
        for _ in carry_out(open_run(tiny(source, family=family, budget={"steps": 40}), out[family]), out[family]):
            pass
    return out


def bench(folders: dict[str, Path], weights: str = "w", settings: FrontierConfig = SETTINGS) -> Bench:
    model = load(folders["ar"], "cpu")
    judge = RedraftEvaluator.of(model, "ar", weights)
    text = "that it is was for the of and a to in he his as are with on "
    real = torch.tensor([list((text * 2)[i : i + 16].encode()) for i in range(24)])
    return Bench(settings, Compute("cpu"), judge, judge, real, model.tokenizer)


def models(folders: dict[str, Path]) -> list[Checkpoint]:
    return [Checkpoint(name, f"{name}-tiny", folder) for name, folder in folders.items()]


@pytest.fixture(scope="module")
def measured(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("measured")
    list(measure_models(models(folders), place, bench(folders)))
    return place


def test_every_setting_and_batch_is_measured_once(measured: Path, folders: dict[str, Path]) -> None:
    found = load_frontier(measured)
    assert found and found.real
    keys = [(s.family, s.steps, s.temperature, s.batch) for s in (p.speed for p in found.places)]
    steps = {"ar": [16], "mdlm": [2, 4]}  # left to right has no choice of steps
    assert sorted(keys) == sorted(
        (f, n, t, b) for f in steps for n in steps[f] for t in (0.7, 1.0, 1.5) for b in (2, 6)
    )
    assert list(measure_models(models(folders), measured, bench(folders))) == []


def test_smaller_batches_share_the_samples_of_the_largest(measured: Path) -> None:
    found = load_frontier(measured)
    assert found
    quality = {}
    for s in (p.speed for p in found.places):
        assert s.samples == 6 and s.timed == 2 and s.latency_p50 <= s.latency_p95
        quality.setdefault(s.key, set()).add(s.quality)
    assert all(len(values) == 1 for values in quality.values())


def test_what_is_kept_of_samples_gives_the_same_quality(measured: Path) -> None:
    found = load_frontier(measured)
    assert found
    for s in (p.speed for p in found.places):
        each = found.scores[s.key]
        assert len(each.nats) == 6
        assert each.nats.sum() / each.tokens.sum() == pytest.approx(s.quality, rel=1e-5)
        assert each.entropy.mean() == pytest.approx(s.entropy, rel=1e-5)
    lines = [json.loads(line) for line in (measured / SAMPLES).read_text().splitlines()]
    assert len(lines) == 1 + 9 and all(len(line["texts"]) == 2 for line in lines)
    assert match(found) is not None


def test_a_judge_that_is_the_source_says_so(measured: Path) -> None:
    found = load_frontier(measured)
    assert found and found.source and found.source["name"] == "ar"
    assert all(p.speed.source_quality == p.speed.quality for p in found.places)


def test_a_torn_line_is_measured_again(measured: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    lines = (measured / FRONTIER).read_text().splitlines(keepends=True)
    (tmp_path / FRONTIER).write_text("".join(lines[:-1]) + lines[-1][:40])
    (tmp_path / SAMPLES).write_text((measured / SAMPLES).read_text())
    (again,) = measure_models(models(folders), tmp_path, bench(folders))
    last = json.loads(lines[-1])
    assert {k: again[k] for k in ("name", "steps", "batch", "quality")} == {
        k: last[k] for k in ("name", "steps", "batch", "quality")
    }


def test_another_judge_is_refused(measured: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"under another judge or version \(ar, now ar\): remove it"):
        next(measure_models(models(folders), measured, bench(folders, "other weights")))
