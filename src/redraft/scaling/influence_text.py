"""What decides a law L(N, D), in sentences: the runs, budgets and groups without which its parameters move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from redraft.display import quantity
from redraft.scaling.laws.influence import Influence, Without, furthest
from redraft.scaling.laws.multiplier import Estimate
from redraft.scaling.laws.parametric import Parametric
from redraft.scaling.results import span

NAMED = 3  # runs or budgets that a warning names, of those that move a parameter each for itself
SHOWN = ("E", "alpha", "beta")


Row = tuple[str, Estimate, tuple[Without | None, Without | None, Without | None]]


def influence_rows(law: Parametric, influence: Influence) -> list[Row]:
    """Of E, alpha and beta: the estimate, and the run, the budget and the group without which it moves most, if any."""
    rows: list[Row] = []
    for name in SHOWN:
        fitted: Estimate = getattr(law, name)
        budget = furthest(influence.budgets, name, fitted) if influence.budgets else None
        run = furthest(influence.runs, name, fitted) if influence.runs else None
        rows.append((name, fitted, (run, budget, influence.groups.get(name))))
    return rows


def influence_words(law: Parametric, influence: Influence) -> str:
    """The run, the budget and the group that move a parameter furthest, each with that parameter."""
    found = []
    for parts in (influence.runs, influence.budgets, tuple(influence.groups.values())):
        moves = [(_widths(getattr(part, name), getattr(law, name)), name, part) for part in parts for name in SHOWN]
        if moves:
            _, name, part = max(moves, key=lambda move: move[0])
            found.append(f"{part_name(part)} ({_other(part, name, law)})")
    return ", ".join(found)


def influence_caveats(law: Parametric, influence: Influence) -> Iterator[str]:
    """Sentences on what moves a parameter out of its interval: groups first, then single runs, then budgets."""
    explained: set[str] = set()
    groups = {part.runs: part for part in influence.groups.values() if part.moved}
    for part in sorted(groups.values(), key=lambda part: -_furthest(part, law)):
        if not explained.issuperset(part.moved):
            explained.update(part.moved)
            yield f"L(N, D) leaves its intervals without {part_name(part)} ({'; '.join(part.runs)}): {_moved(part, law)}."
    yield from _single("one run", [part for part in influence.runs if part.moved], law)
    yield from _single("one budget", [part for part in influence.budgets if part.moved], law)


def part_name(part: Without) -> str:
    """'the budget 1e19 FLOPs', 'the run ar-1M', 'the 5 runs of highest loss'."""
    if part.budget is not None:
        return f"the budget {quantity(part.budget, 'FLOPs')}"
    if len(part.runs) == 1:
        return f"the run {part.runs[0]}"
    return f"the {len(part.runs)} runs {part.which}" if part.which else f"{len(part.runs)} runs"


def _single(what: str, parts: Sequence[Without], law: Parametric) -> Iterator[str]:
    """One sentence on the runs, or the budgets, each of which moves a parameter for itself."""
    if not parts:
        return
    ranked = sorted(parts, key=lambda part: -_furthest(part, law))
    told = [f"{part_name(part)}: {_moved(part, law)}" for part in ranked[:NAMED]]
    more = f"; {len(parts) - NAMED} more do" if len(parts) > NAMED else ""
    yield f"L(N, D) leaves its intervals without {what}: {'; '.join(told)}{more}."


def _furthest(part: Without, law: Parametric) -> float:
    """The largest move of its parameters, in widths of their intervals."""
    return max(_widths(getattr(part, name), getattr(law, name)) for name in part.moved)


def _widths(value: float, fitted: Estimate) -> float:
    return abs(value - fitted.value) / max(1e-300, (fitted.high or fitted.value) - (fitted.low or 0.0))


def _moved(part: Without, law: Parametric) -> str:
    return ", ".join(_other(part, name, law) for name in part.moved)


def _other(part: Without, name: str, law: Parametric) -> str:
    """'beta 0.367, not 0.453 (0.437 to 0.468)'."""
    called = {"allocation": "a"}.get(name, name)
    return f"{called} {getattr(part, name):.3g}, not {span(getattr(law, name))}"
