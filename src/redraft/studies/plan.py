"""A study as data: a base run x families x sizes x budgets x seeds, and what it will cost. No torch.

[base]                         # any key of a run
[[arm]]
families = ["ar", { name = "mdlm", objective = "nelbo" }]
sizes = ["60k", "150k"]
flops = [1e11, 3e11]
seeds = [0]
name = "..."                   # label in fits and figures; the family's name if left out
set = { train = { lr = 1e-3 } }
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from redraft.config import FamilyConfig, Part, RunConfig, merge, validated
from redraft.display import duration, quantity
from redraft.errors import UserError
from redraft.studies.records import JUDGE
from redraft.text.tokenizer import load_tokenizer
from redraft.training.budget import Budget, plan_run, seconds


class ArmConfig(Part):
    """Every combination of its lists is one run."""

    families: list[FamilyConfig]
    sizes: list[str]
    flops: list[float]
    seeds: list[int] = Field([0])
    name: str = ""
    set: dict[str, Any] = Field(default_factory=dict)


class FrontierConfig(Part):
    """Speed and quality of each family's best run: samples scored by a judge, an AR model that is not compared."""

    judge: ArmConfig
    samples: int = Field(32, gt=1)
    length: int = Field(128, gt=1)
    steps: list[int] = Field([4, 16, 64])
    temperatures: list[float] = Field([1.0])


class StudyConfig(Part):
    title: str = "A scaling study"
    base: dict[str, Any] = Field(default_factory=dict)
    arm: list[ArmConfig]
    frontier: FrontierConfig | None = None
    workers: int = Field(1, gt=0, description="runs at a time on this machine")


@dataclass(frozen=True)
class PlannedRun:
    name: str
    arm: str
    config: RunConfig
    budget: Budget


@dataclass(frozen=True)
class Study:
    config: StudyConfig
    runs: tuple[PlannedRun, ...]

    def to_json(self) -> dict[str, Any]:
        runs = [{"name": r.name, "arm": r.arm, **r.budget.to_json()} for r in self.runs]
        return {"title": self.config.title, "runs": runs, "flops": sum(r.budget.flops["full"] for r in self.runs)}


def plan_study(table: dict[str, Any]) -> Study:
    """Every run of a study, dearest first (they pack best on parallel workers); a run named twice is run once."""
    config = validated(StudyConfig, table)
    runs: dict[str, PlannedRun] = {}
    for arm in config.arm:
        runs |= {run.name: run for run in _runs(config.base, arm, arm.name)}
    if config.frontier is not None:
        runs |= {run.name: run for run in _runs(config.base, config.frontier.judge, JUDGE)}
    if not runs:
        raise UserError("the study has no runs: an [[arm]] needs families, sizes, flops and seeds")
    return Study(config, tuple(sorted(runs.values(), key=lambda run: -run.budget.flops["full"])))


def _runs(base: dict[str, Any], arm: ArmConfig, label: str) -> list[PlannedRun]:
    out = []
    for family, size, flops, seed in itertools.product(arm.families, arm.sizes, arm.flops, arm.seeds):
        own = {"family": family.model_dump(), "network": {"size": size}, "budget": {"flops": flops}, "seed": seed}
        config = validated(RunConfig, merge(merge(base, own), arm.set))
        name = label or family.name
        budget = plan_run(config, load_tokenizer(config.data.tokenizer).size)
        out.append(PlannedRun(f"{name}-{size}-{flops:.3g}-s{seed}".replace("+", ""), name, config, budget))
    return out


def study_sentences(study: Study, rate: float) -> list[str]:
    """The plan in sentences: what, how much, how long."""
    budgets = sorted({run.config.budget.flops or 0 for run in study.runs})
    first = study.runs[0].config
    total = sum(run.budget.flops["full"] for run in study.runs)
    arms: dict[str, int] = {}
    for run in study.runs:
        arms[run.arm] = arms.get(run.arm, 0) + 1
    return [
        f"{study.config.title}: {len(study.runs)} runs ({', '.join(f'{n} {arm}' for arm, n in arms.items())}).",
        f"Text: {first.data.source} by {first.data.tokenizer}, rows of {first.data.length} tokens.",
        f"Budgets: {', '.join(quantity(b, 'FLOPs') for b in budgets)} under {first.budget.convention}; "
        f"{quantity(total, 'FLOPs')} in all, everything counted.",
        f"Tokens: {quantity(sum(run.budget.tokens for run in study.runs))} in all, "
        f"at most {quantity(max(run.budget.tokens for run in study.runs))} a run.",
        f"Memory: about {quantity(study.config.workers * max(r.budget.memory_bytes for r in study.runs), 'B')}.",
        f"Time: about {duration(seconds([r.budget for r in study.runs], rate, study.config.workers))} of training, "
        f"{study.config.workers} at a time, at {quantity(rate, 'FLOP/s')} in all (everything counted).",
    ]
