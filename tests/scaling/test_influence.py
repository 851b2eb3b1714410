"""Who decides L(N, D): refits without runs, budgets and groups, and the warning that names them; the Chinchilla case."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from redraft.cli import main
from redraft.errors import UserError
from redraft.scaling.influence_text import influence_caveats
from redraft.scaling.laws.influence import WATCHED, influence
from redraft.scaling.laws.parametric import Parametric, fit_parametric
from redraft.scaling.records import Point, load_points, with_budgets
from tests.planted import law_points

FIGURE_4 = Path(__file__).parents[1] / "fixtures" / "chinchilla" / "figure-4.csv"


@pytest.fixture(scope="module")
def chinchilla() -> tuple[list[Point], Parametric]:
    points = with_budgets(load_points(FIGURE_4))
    return points, fit_parametric(points, [0], 200)


def highest(points: list[Point], count: int) -> list[Point]:
    return sorted(points, key=lambda p: -p.loss)[:count]


def test_the_five_of_highest_loss_decide_beta_of_chinchilla(chinchilla: tuple[list[Point], Parametric]) -> None:
    """arXiv:2404.10102 leaves five runs out: beta .453 with all 245, .367 without (.3658 there, table 1)."""
    points, law = chinchilla
    found = influence(points, law)
    assert found and law.beta and law.beta.value == pytest.approx(0.453, abs=5e-4)
    group = found.groups["beta"]
    assert group.beta == pytest.approx(0.367, abs=5e-4) and group.which == "of highest loss"
    assert {name.split()[-1] for name in group.runs} == {f"{p.loss:.4g}" for p in highest(points, 5)}
    assert group.moved[0] == "beta" and "E" in group.moved


def test_the_warning_names_the_five(chinchilla: tuple[list[Point], Parametric]) -> None:
    points, law = chinchilla
    found = influence(points, law)
    assert found
    first, *others = influence_caveats(law, found)
    assert "without the 5 runs of highest loss" in first and "beta 0.367, not 0.453" in first
    assert all(f"loss {p.loss:.4g}" in first for p in highest(points, 5))
    assert any("without one run: the run 6.8B on 245M tokens" in text for text in others)
    assert any("without one budget" in text for text in others)


def test_refits_without_a_run_and_without_a_budget_are_the_fits_of_the_others(
    chinchilla: tuple[list[Point], Parametric],
) -> None:
    """Warm starts end where a fit from every start ends."""
    points, law = chinchilla
    found = influence(points, law)
    assert found and len(found.runs) == len(points)
    worst = max(range(len(points)), key=lambda row: points[row].loss)
    cold = fit_parametric(points[:worst] + points[worst + 1 :], [0], 40)
    part = max(found.budgets, key=lambda part: abs(part.beta - law.beta.value))  # type: ignore[union-attr]
    other = fit_parametric([p for p in points if p.budget != part.budget], [0], 40)
    for without, again in ((found.runs[worst], cold), (part, other)):
        for name in WATCHED:
            assert getattr(without, name) == pytest.approx(getattr(again, name).value, rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_clean_runs_have_no_group_that_decides(seed: int) -> None:
    points = law_points(budgets=8, sizes=8, noise=0.003, seed=seed)
    found = influence(points, fit_parametric(points, [seed], 200))
    assert found and set(found.groups) == set(WATCHED)
    assert not any(group.moved for group in found.groups.values())


def test_twins_that_hold_each_other_in_place_are_found_together() -> None:
    """The two runs of fewest tokens for a parameter, both too bad: each alone is half of the story, the pair is named."""
    points = law_points(budgets=6, sizes=8, noise=0.002, seed=1)
    for row in (6, 7):
        points[row] = replace(points[row], loss=points[row].loss * 1.3)
    law = fit_parametric(points, [1], 200)
    found = influence(points, law)
    assert found and law.beta
    pair, alone = found.groups["beta"], (found.runs[6], found.runs[7])
    assert set(pair.runs) == {part.runs[0] for part in alone}
    assert abs(pair.beta - law.beta.value) > max(abs(part.beta - law.beta.value) for part in alone)


def test_too_few_runs_have_no_influence() -> None:
    points = law_points(budgets=3, sizes=2)
    assert influence(points, fit_parametric(points, [0], 40)) is None


def test_study_fit_says_who_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One family by --name, in text and in JSON, whose other keys stay."""
    path = tmp_path / "runs.csv"
    points = law_points(budgets=3, sizes=4, noise=0.003)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("params", "tokens", "flops", "loss"))
        table.writerows((p.params, p.tokens, p.flops, p.loss) for p in points)
    main(["study", "fit", str(path), "--name", "gopher", "--resamples", "40"])
    told = capsys.readouterr().out
    assert "Who decides L(N, D), by what it would be without them: of gopher, the run " in told
    main(["study", "fit", str(path), "--resamples", "40", "--json"])
    out = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    family = out["families"]["runs"]
    assert len(family["influence"]["runs"]) == 12 and len(family["influence"]["budgets"]) == 3
    assert family["influence"]["groups"] == {}
    assert {"parametric", "robustness", "held_out", "minima", "engines", "warnings"} <= family.keys()


def test_a_name_beside_a_column_of_families_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("family,params,tokens,flops,loss\nar,1,1,6,2\n")
    with pytest.raises(UserError, match="leave out --name"):
        load_points(path, "gopher")


def test_names_of_runs_are_told_where_they_are_known() -> None:
    points = [replace(p, name=f"run-{i}") for i, p in enumerate(law_points(budgets=3, sizes=4, noise=0.003))]
    found = influence(points, fit_parametric(points, [0], 40))
    assert found and [part.runs for part in found.runs] == [(f"run-{i}",) for i in range(12)]
    assert np.isfinite([part.beta for part in found.budgets]).all()
