"""Learning-rate tuning by family: short runs over a grid, and a recipe that carries the result. No torch.

For every family of a recipe's arms, its smallest and its middle size at the smallest budget are trained at the learning
rates lr x `FACTORS`. The loss is a parabola in ln lr; its vertex is lr*. Two sizes give lr* = k N^-g, which the recipe then
has for every size. A vertex outside the rates that were tried is not believed: the edge stands in for it, and is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redraft.config import FamilyConfig, merge, said, validated
from redraft.display import quantity
from redraft.planning.study import ArmConfig, PlannedRun, Study, StudyConfig, plan_study

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
MARK = "@"  # stands in an arm's name between the family and its learning rate


@dataclass(frozen=True)
class Best:
    """lr* of a family at one size, nats per token there, and whether rates on both sides of it were tried."""

    family: str
    size: str
    params: int
    lr: float
    loss: float
    inside: bool


def tuning_table(table: dict[str, Any], factors: Sequence[float] = FACTORS) -> dict[str, Any]:
    """The study that tunes a study: one arm a family and learning rate."""
    recipe = validated(StudyConfig, table)
    arms = [
        _arm(arm, family, sizes, rate * factor)
        for arm, family, sizes, rate in _subjects(recipe)
        for factor in factors
    ]  # fmt: skip
    kept = {key: value for key, value in table.items() if key not in ("arm", "frontier")}
    return kept | {"title": f"Learning rates for: {recipe.title}", "arm": arms}


def _subjects(recipe: StudyConfig) -> Iterator[tuple[ArmConfig, FamilyConfig, list[str], float]]:
    """Each family once: the first arm that trains it, its smallest and middle size, and its learning rate there."""
    seen: list[FamilyConfig] = []
    for arm in recipe.arm:
        for family in arm.families:
            if family not in seen:
                seen.append(family)
                runs = _at_smallest(recipe, arm, family)
                sizes = [str(run.config.network.size) for run in (runs[0], runs[len(runs) // 2])]
                yield arm, family, list(dict.fromkeys(sizes)), runs[0].config.train.lr


def _at_smallest(recipe: StudyConfig, arm: ArmConfig, family: FamilyConfig) -> list[PlannedRun]:
    """The runs of the smallest budget and first seed, by size."""
    changes = {"families": [family], "seeds": arm.seeds[:1], "flops": [min(arm.flops)], "reuse": False, "preset": ""}
    one = recipe.model_copy(update={"arm": [arm.model_copy(update=changes)], "frontier": None})
    return sorted(plan_study(one.model_dump()).runs, key=lambda run: run.budget.params)


def _arm(arm: ArmConfig, family: FamilyConfig, sizes: list[str], lr: float) -> dict[str, Any]:
    return {
        "name": f"{family.name}{MARK}{lr:.3g}",
        "families": [family.model_dump()],
        "sizes": sizes,
        "flops": [min(arm.flops)],
        "seeds": arm.seeds[:1],
        "set": merge(arm.set, {"train": {"lr": lr}}),
    }


def best_rates(study: Study, losses: Mapping[str, float]) -> list[Best]:
    """lr* of every family and size, from the loss of each run by name; runs that did not end well are left out."""
    cells: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in study.runs:
        if run.name in losses:
            cells.setdefault((run.arm.split(MARK)[0], str(run.config.network.size)), []).append(run)
    return [_best(family, size, runs, losses) for (family, size), runs in sorted(cells.items())]


def _best(family: str, size: str, runs: list[PlannedRun], losses: Mapping[str, float]) -> Best:
    runs = sorted(runs, key=lambda run: run.config.train.lr)
    x = [math.log(run.config.train.lr) for run in runs]
    y = [losses[run.name] for run in runs]
    low = min(range(len(y)), key=y.__getitem__)
    params = runs[0].budget.params
    if not 0 < low < len(y) - 1:
        return Best(family, size, params, math.exp(x[low]), y[low], inside=False)
    place, loss = _vertex(x[low - 1 : low + 2], y[low - 1 : low + 2])
    return Best(family, size, params, math.exp(place), loss, inside=True)


def _vertex(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Of the parabola through three points whose middle one is the lowest."""
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    curve = (right - left) / (x[2] - x[0])
    if curve <= 0:
        return x[1], y[1]
    place = (x[0] + x[1]) / 2 - left / (2 * curve)
    return place, y[1] - curve * (place - x[1]) ** 2


def tuned_table(table: dict[str, Any], best: Sequence[Best]) -> dict[str, Any]:
    """The recipe with lr* for every size: an arm a family, `by_size` where two sizes were tuned."""
    recipe = validated(StudyConfig, table)
    arms = []
    for arm in recipe.arm:
        for family in arm.families:
            own = arm.model_copy(update={"families": [family]})
            rates = {str(run.config.network.size): _rate(run, family.name, best) for run in _every_size(recipe, own)}
            by_size = {size: merge(arm.by_size.get(size, {}), {"train": {"lr": lr}}) for size, lr in rates.items()}
            tuned = own.model_copy(update={"by_size": by_size})
            arms.append(said(tuned.model_dump(exclude_defaults=True)))
    return table | {"arm": arms}


def _every_size(recipe: StudyConfig, arm: ArmConfig) -> list[PlannedRun]:
    one = recipe.model_copy(update={"arm": [arm.model_copy(update={"reuse": False})], "frontier": None})
    return sorted(plan_study(one.model_dump()).runs, key=lambda run: run.budget.params)


def _rate(run: PlannedRun, family: str, best: Sequence[Best]) -> float:
    """lr* at a run's size: through the sizes that were tuned, as a power of N. An edge of what was tried is no bottom, so it
    has no say about other sizes where a bottom was found."""
    every = [b for b in best if b.family == family]
    own = sorted([b for b in every if b.inside] or every, key=lambda b: b.params)
    if not own:
        return run.config.train.lr
    first, last = own[0], own[-1]
    slope = math.log(last.lr / first.lr) / math.log(last.params / first.params) if last.params > first.params else 0.0
    return float(f"{first.lr * (run.budget.params / first.params) ** slope:.3g}")


def tuning_sentences(best: Sequence[Best]) -> list[str]:
    """What was found, a line each."""
    lines = []
    for b in best:
        edge = "" if b.inside else " (the edge of what was tried: widen it with --factors)"
        lines.append(f"{b.family}, {quantity(b.params)} parameters: lr {b.lr:.3g}, {b.loss:.4f} nats/token{edge}")
    return lines
