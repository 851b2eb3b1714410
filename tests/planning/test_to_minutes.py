"""A study scaled to the minutes of this machine: budgets by one factor, sizes by the grid's law, time as asked."""

from __future__ import annotations

import pytest

from redraft.commands.plan import recipe_table
from redraft.planning import pace
from redraft.planning.study import plan_study, study_rate
from redraft.planning.to_minutes import LEAST, minutes_of, scaled, to_minutes


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of two cores on which every part of a block takes a millisecond."""
    monkeypatch.setattr(pace, "_timed", lambda part: 1e-3)
    monkeypatch.setattr(pace, "slowness", lambda: 1.0)
    monkeypatch.setattr(pace, "available", lambda: 2)


def test_the_plan_fits_the_minutes_and_a_larger_one_does_not() -> None:
    table = recipe_table("demo")
    rate = study_rate(plan_study(table))
    fitted = [to_minutes(table, minutes) for minutes in (20, 40)]
    assert LEAST < fitted[0].factor < fitted[1].factor
    for one, minutes in zip(fitted, (20, 40)):
        study, larger = plan_study(one.table), plan_study(scaled(table, 1.05 * one.factor))
        assert one.minutes == minutes_of(study, rate) <= minutes < minutes_of(larger, rate)


def test_budgets_move_by_one_factor_and_sizes_with_them() -> None:
    table = recipe_table("demo")
    small, large = to_minutes(table, 10), to_minutes(table, 400)
    for fitted in (small, large):
        arm, judge = fitted.table["arm"][0], fitted.table["frontier"]["judge"]
        assert arm["flops"] == pytest.approx([f * fitted.factor for f in table["arm"][0]["flops"]], rel=0.05)
        assert judge["flops"][0] == pytest.approx(table["frontier"]["judge"]["flops"][0] * fitted.factor, rel=0.05)
    widest = lambda fitted: max(run.budget.params for run in plan_study(fitted.table).runs if run.arm == "mdlm")
    assert widest(large) > widest(small)


def test_less_than_the_smallest_study_is_the_smallest_study_and_says_its_minutes() -> None:
    fitted = to_minutes(recipe_table("demo"), 0.01)
    assert fitted.factor == LEAST and fitted.minutes > 0.01


def test_the_smallest_runs_come_first_where_the_recipe_says_so() -> None:
    table = recipe_table("demo")
    flops = [run.budget.flops["full"] for run in plan_study(table).runs]
    assert flops == sorted(flops)
    assert plan_study(table | {"order": "largest"}).runs[0].budget == plan_study(table).runs[-1].budget
