"""Measuring: every setting once, resumable, under one judge, in the shape that the frontier reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from redraft.errors import UserError
from redraft.evaluation.compute import Compute
from redraft.evaluation.generation.evaluators import RedraftEvaluator
from redraft.frontier.extend import bracketed
from redraft.frontier.matched_entropy import match
from redraft.frontier.measure import Bench, Checkpoint, measure_models
from redraft.frontier.pareto import FRONTIER, SAMPLES, load_frontier
from redraft.hub.model import load
from redraft.planning.frontier import FrontierConfig
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out
from tests.small_runs import corpus, tiny

SETTINGS = FrontierConfig(
    judge="judge",
    samples=6,
    length=16,
    steps=[2, 4],
    temperatures=[0.7, 1.0, 1.5],
    batches=[2, 6],
    repeats=2,
    keep=2,
    extend=False,
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


COLD = SETTINGS.model_copy(update={"temperatures": [1.6, 2.0], "steps": [4], "extend": True, "entropy": 1.9})


def curves(place: Path) -> dict[str, dict[float, float]]:
    rows = [json.loads(line) for line in (place / FRONTIER).read_text().splitlines()]
    curves: dict[str, dict[float, float]] = {}
    for row in rows:
        curves.setdefault(row["family"], {})[row["temperature"]] = row["entropy"]
    return {name: curve for name, curve in curves.items() if name != "text"}


def test_a_sweep_goes_on_until_every_curve_has_the_entropy(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = list(measure_models(models(folders), tmp_path, bench(folders, settings=COLD)))
    assert all(bracketed(curve, 1.9) for curve in curves(tmp_path).values())
    beyond = {(r["family"], r["temperature"]) for r in rows if r.get("extended")}
    assert {family for family, _ in beyond} == {"ar", "mdlm"} and all(t < 1.6 for _, t in beyond)
    found = load_frontier(tmp_path)
    assert found
    matched = match(found, 1.9)
    assert matched and not matched.misses
    assert len(matched.matches) == 4  # two families, two batches


def test_a_sweep_that_was_killed_goes_on_the_same_way(folders: dict[str, Path], tmp_path: Path) -> None:
    """After any line: what is measured again is what the unbroken measurement had, to the temperature and the batch."""
    whole = tmp_path / "whole"
    whole.mkdir()
    list(measure_models(models(folders), whole, bench(folders, settings=COLD)))
    lines = (whole / FRONTIER).read_text().splitlines(keepends=True)
    keys = lambda place: [
        tuple(json.loads(line)[k] for k in ("family", "temperature", "batch", "entropy"))
        for line in (place / FRONTIER).read_text().splitlines()
    ]
    for kept in (len(lines) - 1, 6):
        place = tmp_path / f"{kept}"
        place.mkdir()
        (place / FRONTIER).write_text("".join(lines[:kept]))
        (place / SAMPLES).write_text((whole / SAMPLES).read_text())
        list(measure_models(models(folders), place, bench(folders, settings=COLD)))
        assert sorted(keys(place)) == sorted(keys(whole))


def test_an_entropy_far_below_is_met_at_greedy(folders: dict[str, Path], tmp_path: Path) -> None:
    """The greedy text of a tiny AR model repeats one letter: its entropy is 0."""
    settings = COLD.model_copy(update={"entropy": 1e-3, "batches": [6]})
    list(
        measure_models(
            [one for one in models(folders) if one.family == "ar"], tmp_path, bench(folders, settings=settings)
        )
    )
    curve = curves(tmp_path)["ar"]
    assert curve[0.0] == 0.0 and bracketed(curve, 1e-3)


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
