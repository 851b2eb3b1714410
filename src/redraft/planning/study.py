"""A study's recipe: a base run x families x sizes x budgets x seeds, resolved to runs with their cost. No torch.

[base]                         # any key of a run
[[arm]]
families = ["ar", { name = "mdlm", objective = "nelbo" }]
sizes = ["60k", "150k"]
flops = [1e11, 3e11]
seeds = [0]
name = "..."                   # label in fits and figures; the family's name if left out
set = { train = { lr = 1e-3 } }
by_size = { "150k" = { train = { lr = 5e-4 } } }
reuse = true                   # one long wsd run for all budgets of a size; the others branch off it (`branched`)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal

from pydantic import Field

from redraft.config import FamilyConfig, RunConfig, merge, validated
from redraft.config_network import Part
from redraft.display import duration, quantity
from redraft.errors import UserError
from redraft.numbers import WIDEST, Amount, Count, Seed
from redraft.planning.budget import Budget, plan_run
from redraft.planning.frontier import FrontierConfig
from redraft.planning.grid import GridConfig, published_centre, windows
from redraft.planning.lr_schedule import idle, shared_steps, warmup_steps
from redraft.planning.pace import cpu_rate, scoring_flops, seconds
from redraft.planning.presets import preset_table
from redraft.registry import FAMILIES
from redraft.scaling.records import JUDGE
from redraft.text.tokenizers.tokenizer import vocabulary


class ArmConfig(Part):
    """Every combination of its lists is one run."""

    families: list[FamilyConfig] = Field(description='by name, or with options: { name = "mdlm", objective = "nelbo" }')
    sizes: list[str] = Field(default_factory=list, description="the same sizes at every budget")
    grid: GridConfig | None = Field(None, description="sizes that move with the budget, instead of `sizes`")
    flops: list[Amount] = Field(description="budgets")
    seeds: list[Seed] = Field([0], description="one run each")
    name: str = Field("", description="label in fits and figures; the family's name if left out")
    set: dict[str, Any] = Field(default_factory=dict, description="keys of a run that this arm sets over [base]")
    by_size: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings of one size")
    preset: str = Field("", description="learning rate and batch by a paper's rule (planning/presets.py)")
    reuse: bool = Field(False, description="one wsd run for all budgets of a size, a branch that decays for each")


class StudyConfig(Part):
    title: str = Field("A scaling study", description="of the report")
    base: dict[str, Any] = Field(default_factory=dict, description="keys of a run that all runs share")
    arm: list[ArmConfig] = Field(description="each a table [[arm]]")
    frontier: FrontierConfig | None = Field(None, description="who samples how, and who judges")
    workers: Count = Field(1, description="runs at a time")
    order: Literal["largest", "smallest"] = Field(
        "largest", description="runs to begin with: the largest pack best, the smallest tell something of all soon"
    )
    gpus: int = Field(0, ge=0, le=WIDEST, description="GPUs that local workers share out; 0 leaves it to them")
    slurm: dict[str, Any] = Field(default_factory=dict, description="what submitit hands to Slurm")


HEADY = 0.5  # of the compute: a head that takes more is told
HOW = ("workers", "order", "gpus", "slurm", "frontier")  # settings that may change without making it another study


@dataclass(frozen=True)
class PlannedRun:
    name: str
    arm: str
    config: RunConfig
    budget: Budget
    trunk: str = ""  # the longer run that it branches off; empty for a run of its own
    at: int = 0  # after so many of its steps

    @property
    def own(self) -> Budget:
        """What it takes itself: steps, tokens and FLOPs without those of the trunk."""
        share = 1 - self.at / self.budget.steps
        steps, flops = self.budget.steps - self.at, {c: f * share for c, f in self.budget.flops.items()}
        return replace(self.budget, steps=steps, tokens=steps * self.budget.tokens_per_step, flops=flops)


@dataclass(frozen=True)
class Study:
    config: StudyConfig
    runs: tuple[PlannedRun, ...]

    def to_json(self) -> dict[str, Any]:
        runs = [
            {"name": r.name, "arm": r.arm, "trunk": r.trunk, "at": r.at, **r.budget.to_json(), "own_flops": r.own.flops}
            for r in self.runs
        ]
        return {"title": self.config.title, "runs": runs, "flops": sum(r.own.flops["full"] for r in self.runs)}


def plan_study(table: dict[str, Any]) -> Study:
    """Every run of a study, largest first or smallest first; a run named twice is run once."""
    check_study(table)
    check_places(table)
    if not table.get("arm"):
        raise UserError("the study has no runs: it needs an [[arm]] with families, sizes or a grid, and flops")
    config = validated(StudyConfig, table)
    runs: dict[str, PlannedRun] = {}
    for arm in config.arm:
        _add(runs, _runs(config.base, arm, arm.name))
    if config.frontier is not None and isinstance(config.frontier.judge, dict):
        judge = validated(ArmConfig, config.frontier.judge)
        _add(runs, _runs(config.base, judge, JUDGE))
    if not runs:
        raise UserError("the study has no runs: an [[arm]] needs families, sizes, flops and seeds")
    sign = 1 if config.order == "smallest" else -1
    return Study(config, tuple(sorted(runs.values(), key=lambda run: sign * run.budget.flops["full"])))


HOMES: dict[str, type[Part]] = {
    "at the top": StudyConfig,
    "in [base]": RunConfig,
    "in an [[arm]]": ArmConfig,
    "in [arm.grid]": GridConfig,
    "in [frontier]": FrontierConfig,
}


def is_study(table: Mapping[str, Any]) -> bool:
    """Whether a recipe is meant for a study: it has a key that only studies have, in its place or not."""
    keys = {*StudyConfig.model_fields, *ArmConfig.model_fields} - {*RunConfig.model_fields}
    return not keys.isdisjoint(table)


def check_study(table: Mapping[str, Any]) -> None:
    """`UserError` for the recipe of a run."""
    if not is_study(table):
        raise UserError("this is no recipe of a study, for it has no [[arm]]: a recipe of a run is for `redraft train`")


def check_places(table: Mapping[str, Any]) -> None:
    """`UserError` for a key that means nothing where it stands and has a place in another table of the recipe."""
    listed = table.get("arm")
    arms = [arm for arm in listed if isinstance(arm, Mapping)] if isinstance(listed, list) else []
    parts = [("at the top", table), ("in [base]", table.get("base")), ("in [frontier]", table.get("frontier"))]
    parts += [("in an [[arm]]", arm) for arm in arms] + [("in [arm.grid]", arm.get("grid")) for arm in arms]
    for place, part in parts:
        for key in part if isinstance(part, Mapping) else ():
            homes = [home for home, model in HOMES.items() if key in model.model_fields]
            if homes and place not in homes:
                raise UserError(
                    f"{key} stands {place} of the recipe, where it means nothing: it belongs {' or '.join(homes)} "
                    f"(`redraft study new FILE.toml` writes a recipe with everything in its place)"
                )


def new_recipe() -> str:
    """A commented recipe to begin with."""
    return (resources.files("redraft.planning") / "new.toml").read_text("utf-8")


def _add(runs: dict[str, PlannedRun], new: Sequence[PlannedRun]) -> None:
    """`UserError` where two runs that differ would have one name."""
    for run in new:
        other = runs.setdefault(run.name, run)
        if other.config != run.config:
            raise UserError(f"two runs of the study are called {run.name} and differ: give one of the arms a name")


def _runs(base: dict[str, Any], arm: ArmConfig, label: str) -> list[PlannedRun]:
    out = []
    for family, seed in itertools.product(arm.families, arm.seeds):
        for size, budgets in _budgets(base, arm, family).items():
            over = merge(arm.set, arm.by_size.get(size, {}))
            runs = [_run(base, over, label or family.name, family, size, flops, seed, arm.preset) for flops in budgets]
            out += branched(runs) if arm.reuse else runs
    return out


def _budgets(base: dict[str, Any], arm: ArmConfig, family: FamilyConfig) -> Mapping[str, list[float]]:
    """The budgets of each size of a family."""
    if bool(arm.sizes) == bool(arm.grid):
        raise UserError("arm: give either sizes = [names] or a grid")
    if arm.grid is None:
        return {size: sorted(arm.flops) for size in arm.sizes}
    params = lambda size: _run(base, arm.set, "", family, size, max(arm.flops), 0).budget.params
    return windows(arm.grid, arm.flops, params, arm.grid.centre or published_centre(family.name))


def _run(
    base: dict[str, Any],
    over: dict[str, Any],
    label: str,
    family: FamilyConfig,
    size: str,
    flops: float,
    seed: int,
    preset: str = "",
) -> PlannedRun:
    own = {"family": family.model_dump(), "network": {"size": size}, "budget": {"flops": flops}, "seed": seed}
    config = validated(RunConfig, merge(merge(base, own), over))
    vocab = vocabulary(config.data.tokenizer)
    if preset:
        # The tokens that a budget buys do not depend on the batch, but for the last step.
        single = config.model_copy(update={"train": config.train.model_copy(update={"batch": 1, "accumulate": 1})})
        rule = preset_table(preset, plan_run(single, vocab), config)
        config = validated(RunConfig, merge(config.model_dump(), {"train": rule}))
    budget = plan_run(config, vocab)
    return PlannedRun(f"{label}-{size}-{flops:.3g}-s{seed}".replace("+", ""), label, config, budget)


def branched(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Runs that differ in their budgets alone, ascending, as branches of the longest.

    Needs train.schedule = "wsd". A warmup given as a share becomes that share of the shortest run, in steps: it has to be the
    same for all. `UserError` for an objective that depends on how much of the budget is spent.
    """
    if not runs:
        return []
    first, longest = runs[0], runs[-1]
    train, family = first.config.train, first.config.family
    if train.schedule != "wsd":
        raise UserError(f'reuse needs train.schedule = "wsd": {train.schedule!r} knows the end of a run all along')
    if any(run.config.train != train for run in runs):
        raise UserError(
            f"reuse needs the same settings at every budget; those of {first.arm} follow the budget (a preset)"
        )
    if FAMILIES[family.name].paced(family.options) or (train.adapt is not None and train.adapt.open):
        raise UserError(
            f"reuse cannot serve {first.arm}: its objective depends on the share of the budget that is spent"
        )
    train = train.model_copy(update={"warmup": float(max(1, warmup_steps(train, first.budget.steps)))})
    runs = [replace(r, config=r.config.model_copy(update={"train": train})) for r in runs]
    shared = [shared_steps(train, r.budget.steps, longest.budget.steps) for r in runs]
    return [
        r if r.name == longest.name or at == 0 else replace(r, trunk=longest.name, at=at) for r, at in zip(runs, shared)
    ]


def study_sentences(study: Study, rate: float | None, devices: int | None = None) -> list[str]:
    """The plan in sentences: what, how much, and how long at a `rate` in FLOP/s, where that is known."""
    budgets = sorted({run.config.budget.flops or 0 for run in study.runs})
    first = study.runs[0].config
    total = sum(run.own.flops["full"] for run in study.runs)
    arms: dict[str, int] = {}
    for run in study.runs:
        arms[run.arm] = arms.get(run.arm, 0) + 1
    return [
        f"{study.config.title}: {len(study.runs)} runs ({', '.join(f'{n} {arm}' for arm, n in arms.items())}).",
        f"Text: {first.data.source} by {first.data.tokenizer}, rows of {first.data.length} tokens.",
        f"Budgets: {', '.join(quantity(b, 'FLOPs') for b in budgets)} under {first.budget.convention}; "
        f"{quantity(total, 'FLOPs')} in all, everything counted.",
        *_saving(study),
        f"Tokens: {quantity(sum(run.own.tokens for run in study.runs))} in all, "
        f"at most {quantity(max(run.budget.tokens for run in study.runs))} a run.",
        f"Memory: about {quantity(study.config.workers * max(r.budget.memory_bytes for r in study.runs), 'B')}.",
        *([] if rate is None else [_time(study, rate, devices)]),
        *(f"Note: {told}" for told in study_notes(study.runs)),
    ]


def study_notes(runs: Sequence[PlannedRun]) -> list[str]:
    """What is amiss with schedules of some runs, and with a head that takes most of the compute; a sentence each."""
    found: dict[str, list[tuple[str, str]]] = {}
    for run in sorted(runs, key=lambda run: run.budget.steps):
        for told in idle(run.config.train, run.budget.steps):
            found.setdefault(told.split()[0], []).append((run.name, told))
    of = lambda told: f" (so {len(told)} of {len(runs)} runs: {told[0][0]} is the shortest)" if len(told) > 1 else ""
    out = [f"{told[0][1].removesuffix('.')}{of(told)}." for told in found.values()]
    head = sum(6 * run.budget.shape.vocab * run.budget.shape.width * run.own.tokens for run in runs)
    share = head / sum(run.own.flops["full"] for run in runs)
    if share > HEADY:
        out.append(
            f"the head takes {share:.0%} of the compute: a tokenizer of fewer ids lets these networks train longer."
        )
    return out


def study_rate(study: Study) -> float:
    """Useful FLOP/s to expect of this CPU in all while its workers train."""
    at_a_time = min(study.config.workers, len(study.runs))
    return cpu_rate([run.own for run in study.runs], study.runs[0].config.train.threads, at_a_time)


def _time(study: Study, rate: float, devices: int | None) -> str:
    at_a_time = min(study.config.workers, len(study.runs))
    spent = seconds([run.own for run in study.runs], rate, at_a_time, devices)
    scoring = sum(scoring_flops(run.config, run.budget) for run in study.runs) / rate
    return (
        f"Time: about {duration(spent)} of training and {duration(scoring)} of scoring, "
        f"{study.config.workers} at a time, at {quantity(rate, 'FLOP/s')} in all (everything counted)."
    )


def _saving(study: Study) -> list[str]:
    """What branching saves against training every run from its first step."""
    branches = [run for run in study.runs if run.trunk]
    if not branches:
        return []
    alone = sum(run.budget.flops["full"] for run in study.runs)
    saved = alone - sum(run.own.flops["full"] for run in study.runs)
    trunks = len({run.trunk for run in branches})
    return [
        f"{len(branches)} of the runs branch off {trunks} longer ones where their learning rate begins to fall: "
        f"{quantity(saved, 'FLOPs')} saved of {quantity(alone, 'FLOPs')} ({saved / alone:.0%})."
    ]
