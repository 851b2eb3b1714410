"""What the plan of a study can tell apart: from an earlier study's noise, or as stated; `redraft plan RECIPE` says it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redraft.cli import main
from redraft.planning.study import plan_study
from redraft.planning.study_power import STATED, Prior, contrasts, prior_of, stated
from redraft.scaling.laws.isoflop import Noise
from redraft.scaling.power import Design, detectable_by
from redraft.scaling.records import Point

RECIPE = """
[base]
data = { source = "stdlib", tokenizer = "bytes", length = 16 }
[[arm]]
families = ["mdlm"]
sizes = ["6k"]
flops = [1e9]
seeds = [0, 1, 2]
[[arm]]
name = "mdlm-nelbo"
families = [{ name = "mdlm", objective = "nelbo" }]
sizes = ["6k"]
flops = [1e9]
seeds = [0, 1, 2]
[[arm]]
families = ["ar"]
sizes = ["6k"]
flops = [1e9]
seeds = [0]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def earlier(rho: float, sd: float = 0.02, cells: int = 40, seeds: int = 8) -> list[Point]:
    """Two arms over shared seeds, their losses about C^-.05 with planted noise and correlation."""
    rng, points = np.random.default_rng(0), []
    for cell in range(cells):
        flops, size = 1e9 * 2.0 ** (cell % 5), 1e3 * 2 ** (cell // 5)
        shared = rng.standard_normal(seeds)
        for arm in ("ar", "mdlm"):
            noise = sd * (np.sqrt(rho) * shared + np.sqrt(1 - rho) * rng.standard_normal(seeds))
            points += [
                Point(arm, size, flops / 6 / size, flops, float(8 * flops**-0.05 + e), budget=flops, seed=seed)
                for seed, e in enumerate(noise)
            ]
    return points


def plan(recipe: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    main(["plan", str(recipe), "--json", "--rate", "1e9", *flags])
    return json.loads(capsys.readouterr().out)["power"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_noise_and_correlation_of_an_earlier_study_are_found(rho: float) -> None:
    """560 and 280 degrees of freedom: standard errors of 3 % and of (1 - rho^2) / sqrt(280) < .06."""
    prior = prior_of(earlier(rho), "runs.csv")
    assert prior.noise.sd == pytest.approx(0.02, rel=0.12) and prior.noise.dof == 560
    assert prior.correlation == pytest.approx(rho, abs=0.24) and "280 degrees" in prior.correlation_from
    assert "runs.csv" in prior.noise.source


def test_a_few_seeds_do_not_tell_a_correlation() -> None:
    prior = prior_of(earlier(0.8, cells=2, seeds=2), "runs.csv")
    assert prior.correlation == 0.0 and "do not tell it" in prior.correlation_from
    assert prior.noise.sd is not None


def test_arms_of_one_family_are_paired_and_one_seed_goes_by_the_noise(recipe: Path) -> None:
    import tomllib

    prior = Prior(Noise(0.02, 30, "planted"), 0.5, "planted", 0.1, "planted")
    found = {(one.arm, one.against): one for one in contrasts(plan_study(tomllib.loads(RECIPE)), prior, 0.01)}
    pair = found["mdlm", "mdlm-nelbo"]
    assert pair.paired and pair.seeds == 3
    assert pair.detectable.value == pytest.approx(detectable_by(Design(3, 0.5), 0.02))
    alone = found["ar", "mdlm"]
    assert (
        alone.seeds == 1 and alone.detectable.value > 2.8 * 0.02
    )  # t of 30 degrees of freedom on sd sqrt(2 (1 - rho))
    less = contrasts(plan_study(tomllib.loads(RECIPE)), replace(prior, correlation=0.9))
    assert all(b.detectable.value < a.detectable.value for a, b in zip(found.values(), less) if a.paired)


def test_the_plan_says_what_it_can_resolve(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = plan(recipe, capsys)
    assert told["prior"]["noise"]["sd"] == STATED.noise.sd and "demo" in told["prior"]["noise"]["source"]
    assert {(one["arm"], one["against"]) for one in told["comparisons"]} == {
        ("ar", "mdlm"), ("ar", "mdlm-nelbo"), ("mdlm", "mdlm-nelbo"),
    }  # fmt: skip
    quiet = plan(recipe, capsys, "--noise", "0.004", "--resolve", "0.02")
    for loud, calm in zip(told["comparisons"], quiet["comparisons"]):
        assert calm["detectable"]["value"] < loud["detectable"]["value"] and calm["seeds_needed"] >= 2
        assert calm["compute_factor"] > 1
    main(["plan", str(recipe), "--rate", "1e9", "--resolve", "0.01"])
    text = capsys.readouterr().out
    assert "Power, at 80 %: noise of a run 0.041 nats (a prior:" in text
    assert (
        "MDLM and MDLM-nelbo: 3 seeds at a size and a budget, paired by seed, sees" in text and "0.01 nats need" in text
    )


def test_the_plan_takes_the_noise_of_an_earlier_table(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{p.family},{p.params},{p.tokens},{p.flops},{p.loss},{p.budget},{p.seed}"
        for p in earlier(0.5, cells=10, seeds=3)
    ]
    table = tmp_path / "before.csv"
    table.write_text("\n".join(["family,params,tokens,flops,loss,budget,seed", *rows]))
    told = plan(recipe, capsys, "--like", str(table))["prior"]
    assert told["noise"]["dof"] == 40 and "before.csv" in told["noise"]["source"] and "before.csv" in told["slope_from"]


def test_power_is_no_matter_of_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--family", "ar", "--size", "6k", "--flops", "1e9", "--resolve", "0.1"])
    assert stop.value.code == 2 and "it compares nothing" in capsys.readouterr().err


def test_what_to_go_by_must_be_there_and_of_the_right_kind(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "before.csv"
    table.write_text("family,params,tokens,flops,loss\nar,1,1,6,2\n")
    run = ["plan", "--family", "ar", "--size", "6k", "--flops", "1e9"]
    for command, said in (
        (["plan", str(recipe), "--like", str(tmp_path / "none")], "there is no such run, study or table"),
        ([*run, "--like", str(table)], "is no finished run"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2 and said in capsys.readouterr().err


def test_a_stated_correlation_needs_fewer_seeds(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Paired differences have 1 - rho of the variance; what is not paired does not change."""
    one, other = (plan(recipe, capsys, "--noise", "0.01", "--correlation", rho) for rho in ("0", "0.75"))
    assert other["prior"]["correlation"] == 0.75 and other["prior"]["correlation_from"] == "stated by --correlation"
    for apart, paired in zip(one["comparisons"], other["comparisons"], strict=True):
        if paired["paired"] and apart["paired"]:
            assert paired["detectable"]["value"] == pytest.approx(apart["detectable"]["value"] / 2)
        else:
            assert paired["detectable"]["value"] <= apart["detectable"]["value"]
    assert any(row["paired"] for row in other["comparisons"])


def test_a_stated_noise_is_taken_as_known() -> None:
    assert stated(0.01).noise == Noise(0.01, 0, "stated by --noise") and stated(None) is STATED
