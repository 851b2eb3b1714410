"""A study's recipe scaled to the time that this machine may spend on it: all its budgets by one factor. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from redraft.config import validated
from redraft.network.flops import training_flops_per_token
from redraft.planning.pace import FORWARD_AND_BACK, scoring_flops, seconds
from redraft.planning.study import ArmConfig, PlannedRun, Study, plan_study, study_rate
from redraft.registry import FAMILIES
from redraft.scaling.records import JUDGE

# Settings that are sampled for each in the recipe: sweeps of temperature go on until they reach the entropy.
SWEPT = 1.5
LEAST = (
    0.25  # of the recipe's budgets: below, the smallest runs are less than a dozen steps, and all families look alike
)
MOST = 1e6  # no more is asked of any machine
# Read off one machine: pages written beside the training, as a part of its time; the report's fits and figures at the end.
PAGES, REPORT = 0.1, 20.0  # -, seconds
HALVINGS = 8  # on the way to the factor, between one that fits and twice it: to .3 %


@dataclass(frozen=True)
class Scaled:
    """A recipe whose budgets were multiplied by `factor`, and the minutes it is expected to take."""

    table: dict[str, Any]
    factor: float
    minutes: float


def to_minutes(table: dict[str, Any], minutes: float) -> Scaled:
    """The recipe with budgets that train, score, sample and are reported in about so many minutes on this machine, as busy as
    it is; or the smallest that tells anything, where that takes longer. A grid's sizes move with the budgets by its own law,
    and small networks take more steps for their FLOPs: so every factor is planned, at the speed that was measured once."""
    rate = study_rate(plan_study(table))
    spent = lambda factor: minutes_of(plan_study(scaled(table, factor)), rate)
    low, high = LEAST, LEAST
    while spent(high) < minutes and high < MOST:
        low, high = high, 2 * high
    for _ in range(HALVINGS if high > LEAST else 0):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spent(middle) < minutes else (low, middle)
    return Scaled(scaled(table, low), low, spent(low))


def minutes_of(study: Study, rate: float) -> float:
    """Minutes from the first run to the report at `rate` FLOP/s (everything counted) in all."""
    runs, at_a_time = [run.own for run in study.runs], min(study.config.workers, len(study.runs))
    scoring = sum(scoring_flops(run.config, run.budget) for run in study.runs) / rate
    sampling = sampling_flops(study) / (rate / at_a_time)
    return (seconds(runs, rate, at_a_time) * (1 + PAGES) + scoring + sampling + REPORT) / 60


def scaled(table: dict[str, Any], factor: float) -> dict[str, Any]:
    """The recipe with every budget times `factor`, to two digits."""
    arms = [_scaled(arm, factor) for arm in table["arm"]]
    frontier = dict(table.get("frontier") or {})
    if isinstance(frontier.get("judge"), dict):
        frontier["judge"] = _scaled(frontier["judge"], factor)
    return table | {"arm": arms} | ({"frontier": frontier} if frontier else {})


def _scaled(arm: dict[str, Any], factor: float) -> dict[str, Any]:
    return arm | {"flops": [float(f"{flops * factor:.2g}") for flops in validated(ArmConfig, arm).flops]}


def sampling_flops(study: Study) -> float:
    """FLOPs (everything counted) of the frontier: a middling network of each family at all steps and temperatures."""
    frontier = study.config.frontier
    if frontier is None:
        return 0.0
    sampled = {arm: _middle([r for r in study.runs if r.arm == arm]) for arm in {r.arm for r in study.runs} - {JUDGE}}
    tokens = SWEPT * frontier.samples * frontier.length * len(frontier.temperatures)
    calls = {name: 1 if FAMILIES[r.config.family.name].causal else sum(frontier.steps) for name, r in sampled.items()}
    passes = lambda r: training_flops_per_token(r.budget.shape, frontier.length, "full") / FORWARD_AND_BACK
    return tokens * sum(calls[name] * passes(run) for name, run in sampled.items())


def _middle(runs: list[PlannedRun]) -> PlannedRun:
    return sorted(runs, key=lambda run: run.budget.params)[len(runs) // 2]
