"""Grids, presets: what a study plans before anything is spent."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest

from redraft.errors import UserError
from redraft.network.flops import non_embedding
from redraft.network.sizes import LADDER, from_size
from redraft.planning.grid import CentreConfig, GridConfig, published_centre, windows
from redraft.planning.presets import PRESETS
from redraft.planning.study import plan_study, study_notes
from redraft.scaling.records import load_points

LAW = CentreConfig(flops=1e19, params=2e8, exponent=0.5)
BUDGETS = [6e18, 1e19, 3e19, 6e19, 1e20]


def params(name: str) -> int:
    return non_embedding(from_size(name, "dit", 32000))


@pytest.mark.parametrize("grid", [{"between": ("20M", "2B")}, {"between": ("20M", "2B"), "ratio": 1.5}])
def test_sizes_of_a_budget_are_neighbours_centred_on_the_law(grid: dict[str, Any]) -> None:
    chosen = GridConfig(sizes=5, **grid)
    ladder = sorted(chosen.names(), key=params)
    found = windows(chosen, BUDGETS, params, LAW)
    spacing = max(math.log(params(b) / params(a)) for a, b in zip(ladder, ladder[1:]))
    for flops in BUDGETS:
        sizes = [name for name in ladder if flops in found.get(name, [])]
        first = ladder.index(sizes[0])
        assert sizes == ladder[first : first + 5]
        centre = fmean(math.log(params(name)) for name in sizes)
        assert abs(centre - math.log(LAW.at(flops))) <= spacing / 2


def test_a_ladder_between_two_sizes_of_the_papers_is_theirs() -> None:
    names = GridConfig(between=("60M", "200M")).names()
    assert names == [name for name in LADDER if 60 <= float(name[:-1]) <= 200] and len(names) > 3


def test_a_published_law_passes_through_the_published_optima() -> None:
    for family in ("ar", "mdlm", "duo", "esolm"):
        law = published_centre(family)
        points = [p for p in load_points("published:scaling-beyond") if p.family == family]
        misses = [math.log(law.at(p.flops) / p.params) for p in points]
        assert abs(fmean(misses)) < 1e-9 and max(map(abs, misses)) < 0.15
    assert published_centre("gidd") == published_centre("mdlm")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"ladder": ["6k", "14k"]}, "it has 2: 6k, 14k"),
        ({"between": ("6k", "large")}, "unknown size 'large'"),
        ({"ladder": ["6k"], "between": ("6k", "14k")}, "either ladder"),
        ({"between": ("6k", "14k"), "ratio": 0.5}, "sizes must grow"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_by_name(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_study(study(grid=grid))


def test_two_runs_that_differ_are_not_one_because_of_their_name() -> None:
    table = study(sizes=["150k"], families=["mdlm", {"name": "mdlm", "objective": "nelbo"}])
    with pytest.raises(UserError, match="are called mdlm-150k-1e12-s0 and differ"):
        plan_study(table)


def test_an_arm_takes_sizes_or_a_grid() -> None:
    with pytest.raises(UserError, match="either sizes"):
        plan_study(study())


def study(**arm: Any) -> dict[str, Any]:
    rest = {"families": ["mdlm"], "flops": [1e12], "seeds": [0]} | arm
    return {"base": {"data": {"length": 128}}, "arm": [rest]}


def test_step_law_is_the_paper_s_at_its_own_scale() -> None:
    """Li et al. 2025: N = 1e9 without the embedding and D = 1e11 have lr 1.64e-3 and 1.1M tokens a batch."""
    rule = PRESETS["step-law"].rule(1e9, 1e11, 2048, 0.0)
    assert rule["lr"] == pytest.approx(1.79 * 10 ** (-0.713 * 9 + 0.307 * 11))
    assert rule["batch"] * 2048 == pytest.approx(0.58 * 10 ** (0.571 * 11), rel=2e-3)
    assert rule["lr"] * rule["min_lr"] == pytest.approx(1e-5)


def test_power_lines_keep_the_timescale_of_the_weights() -> None:
    rule = PRESETS["power-lines"].rule(1e8, 2e9, 1024, 1e-3)
    reach = rule["batch"] * 1024 / (1e-3 * rule["weight_decay"] * 2e9)
    assert reach == pytest.approx(1.084 * 20**-0.527)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_in_every_run_for_its_own_size_and_tokens(name: str) -> None:
    carried = {"train": {"completep": {"width": 32, "depth": 2}}}
    runs = plan_study(study(sizes=["150k", "300k"], flops=[1e13, 4e13], preset=name, set=carried)).runs
    for run in runs:
        counts = run.budget.parameters
        own = sum(counts.values()) - counts["embedding"] - counts["head"]
        rule = PRESETS[name].rule(own, run.budget.tokens, 128, 1e-3)
        for key in ("lr", "weight_decay"):
            assert getattr(run.config.train, key) == pytest.approx(
                rule.get(key, getattr(run.config.train, key)), rel=0.05
            )
        assert run.config.train.batch == pytest.approx(rule.get("batch", run.config.train.batch), rel=0.05)


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'step-law'"):
        plan_study(study(sizes=["150k"], preset="steplaw"))


def test_completep_must_know_where_its_rate_comes_from() -> None:
    with pytest.raises(UserError, match="that lr was chosen on"):
        plan_study(study(sizes=["150k"], preset="completep"))


def test_a_preset_that_follows_the_budget_cannot_share_a_trunk() -> None:
    table = study(sizes=["150k"], flops=[1e13, 4e13], preset="step-law", reuse=True)
    table["base"]["train"] = {"schedule": "wsd"}
    with pytest.raises(UserError, match="the same settings at every budget"):
        plan_study(table)


def test_a_plan_says_which_of_its_runs_never_reach_their_rate_and_that_the_head_takes_the_compute() -> None:
    base = {"data": {"length": 64}, "network": {"cond": 8}, "train": {"batch": 8, "warmup": 20}}
    arm = {"families": ["ar"], "sizes": ["6k"], "flops": [1e8, 1e11]}
    plan = lambda **over: plan_study({"title": "x", "base": base | over, "arm": [arm]})
    (told,) = study_notes(plan().runs)
    assert told.startswith("train.warmup takes 20 steps and the run has 3") and "runs:" not in told
    wide = plan(train={"batch": 8, "warmup": 0.1}, network={"cond": 8, "block": "llama"}).runs
    assert study_notes(wide) == []
    heavy = [replace(run, budget=replace(run.budget, shape=replace(run.budget.shape, vocab=50257))) for run in wide]
    assert [told.partition(" of the compute")[0][:14] for told in study_notes(heavy)] == ["the head takes"]
