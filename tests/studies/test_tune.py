"""Tuning finds the bottom of a bowl, says where it did not, and writes a recipe that carries the rates."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from typing import Any

import pytest
import tomli_w

from redraft.planning.study import Study, plan_study
from redraft.registry import FAMILIES
from redraft.studies.tune import best_rates, tuned_table, tuning_sentences, tuning_table

TABLE: dict[str, Any] = {
    "base": {"data": {"length": 64}, "train": {"lr": 1e-3}},
    "arm": [{"families": ["ar", "mdlm"], "sizes": ["6k", "25k", "98k"], "flops": [1e11, 4e11], "seeds": [0, 1]}],
}


def law(family: str, params: int) -> float:
    """A planted lr*."""
    return {"ar": 1.3e-3, "mdlm": 0.8e-3}[family] * (params / 3e4) ** -0.3


def losses(study: Study) -> dict[str, float]:
    """Bowls in ln lr around the planted rates."""
    out = {}
    for run in study.runs:
        off = math.log(run.config.train.lr / law(run.config.family.name, run.budget.params))
        out[run.name] = 2.0 + 0.05 * off**2
    return out


def test_planted_rates_are_found_at_every_size_of_the_recipe() -> None:
    study = plan_study(tuning_table(TABLE))
    best = best_rates(study, losses(study))
    assert {(b.family, b.size) for b in best} == {(f, s) for f in ("ar", "mdlm") for s in ("6k", "25k")}
    for b in best:
        assert b.inside and b.lr == pytest.approx(law(b.family, b.params), rel=1e-9) and b.loss == pytest.approx(2.0)
    tuned = plan_study(tuned_table(TABLE, best))
    assert {run.name for run in tuned.runs} == {run.name for run in plan_study(TABLE).runs}
    for run in tuned.runs:
        assert run.config.train.lr == pytest.approx(law(run.config.family.name, run.budget.params), rel=5e-3)


def test_tuning_is_short() -> None:
    study, tuning = plan_study(TABLE), plan_study(tuning_table(TABLE))
    assert {run.config.budget.flops for run in tuning.runs} == {1e11} and len(tuning.runs) == 2 * 2 * 5
    assert {run.config.seed for run in tuning.runs} == {0} and len(study.runs) == 2 * 3 * 2 * 2


def test_a_rate_at_the_edge_is_named() -> None:
    study = plan_study(tuning_table(TABLE, [0.01, 0.02, 0.04]))
    best = best_rates(study, losses(study))
    assert not any(b.inside for b in best) and [b.lr for b in best] == pytest.approx([4e-5] * 4)
    assert all("edge" in line for line in tuning_sentences(best))


def test_an_edge_tells_nothing_about_other_sizes() -> None:
    study = plan_study(tuning_table(TABLE))
    best = [replace(b, lr=1e-9, inside=False) if b.size == "25k" else b for b in best_rates(study, losses(study))]
    for run in plan_study(tuned_table(TABLE, best)).runs:
        found = next(b.lr for b in best if b.family == run.config.family.name and b.inside)
        assert run.config.train.lr == pytest.approx(found, rel=5e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tuned_recipe_of_every_family_is_a_file(family: str) -> None:
    table = {"base": TABLE["base"], "arm": [{"families": [family], "sizes": ["6k"], "flops": [1e11], "seeds": [0]}]}
    study = plan_study(tuning_table(table))
    best = best_rates(study, {run.name: 2.0 + math.log(run.config.train.lr / 1e-3) ** 2 for run in study.runs})
    again = tomllib.loads(tomli_w.dumps(tuned_table(table, best)))
    assert [run.config.train.lr for run in plan_study(again).runs] == pytest.approx([1e-3], rel=5e-3)


def test_runs_that_diverged_are_left_out() -> None:
    study = plan_study(tuning_table(TABLE))
    found = {name: loss for name, loss in losses(study).items() if "@0.004" not in name}
    assert all(b.lr == pytest.approx(law(b.family, b.params), rel=1e-6) for b in best_rates(study, found))
