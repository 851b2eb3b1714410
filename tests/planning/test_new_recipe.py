"""A recipe of a study can be written, is documented, and leads a key that stands in the wrong table to the right one."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from redraft.cli import main
from redraft.config import FamilyConfig, RunConfig, validated
from redraft.planning.frontier import FrontierConfig
from redraft.planning.grid import GridConfig
from redraft.planning.study import ArmConfig, StudyConfig, new_recipe, plan_study

DOCS = Path(__file__).parents[2] / "docs"


def test_the_documented_recipe_is_the_one_that_is_written_and_it_plans(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "first.toml"
    main(["study", "new", str(path)])
    assert f"```toml\n{path.read_text()}```" in (DOCS / "studies.md").read_text()
    study = plan_study(tomllib.loads(path.read_text()))
    assert {run.arm for run in study.runs} == {"ar", "mdlm", "mdlm-low-variance", "judge"}
    assert any(run.trunk for run in study.runs)
    assert len(list(path.parent.iterdir())) == 1


def test_it_shows_every_table_and_every_line_says_what_it_is() -> None:
    table = tomllib.loads(new_recipe())
    assert {"title", "workers", "base", "arm", "frontier"} <= table.keys() and "grid" in table["arm"][0]
    heads = [line for line in new_recipe().splitlines() if line.startswith("[") and line != "[base.train]"]
    assert [line for line in heads[1:] if "#" not in line] == ["[[arm]]"]  # the second one; the first is explained


@pytest.mark.parametrize(("path", "why"), [
    ("there.toml", "is there already"), ("dangling.toml", "is there already"), ("recipe", "name it recipe.toml"),
])  # fmt: skip
def test_nothing_is_written_over(path: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there.toml").write_text("mine")
    (tmp_path / "dangling.toml").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as left:
        main(["study", "new", str(tmp_path / path)])
    said = capsys.readouterr().err
    assert left.value.code == 2 and why in said and said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "there.toml").read_text() == "mine"


ARM = "[[arm]]\nfamilies = ['ar']\nsizes = ['14k']\nflops = [1e10]\n"
GOES = " of the recipe, where it means nothing: it belongs"
WRONG = [  # the recipe, and what is said of it
    ("families = ['ar']\n", f"families stands at the top{GOES} in an [[arm]]"),
    ("flops = [1e10]\n" + ARM, "flops stands at the top"),
    ("lr = 3\n" + ARM, "unknown key 'lr'"),
    ("[base]\nlr = 3\n" + ARM, "A run has train.lr."),
    ("[base.train]\nlearning_rate = 3\n" + ARM, "A run has train.lr."),
    (ARM + "lr = 3\n", "A run has train.lr: in an arm, set = { train = { lr = ... } }."),
    ("family = 'ar'\n" + ARM, f"family stands at the top{GOES} in [base]"),
    ("[grid]\nsizes = 3\n" + ARM, f"grid stands at the top{GOES} in an [[arm]]"),
    ("[base]\nfamilies = ['ar']\n" + ARM, "families stands in [base]"),
    (ARM + "ladder = ['14k']\n", f"ladder stands in an [[arm]]{GOES} in [arm.grid]"),
    (ARM + "judge = 'm'\n", "it belongs in [frontier]"),
    (ARM + "[frontier]\nworkers = 2\n", f"workers stands in [frontier]{GOES} at the top"),
    ("[base]\nseed = 1\n", "it needs an [[arm]]"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "why"), WRONG)
@pytest.mark.parametrize("verb", [["plan"], ["study", "run", "--into", "never"]])
def test_a_key_in_the_wrong_table_is_led_to_the_right_one(
    verb: list[str], text: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(SystemExit) as left:
        main([*verb, str(tmp_path / "r.toml")])
    said = capsys.readouterr().err
    assert left.value.code == 2 and why in said and said.count("\n") == 1
    assert not Path("never").exists()


def test_a_study_is_no_recipe_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "demo", "--into", str(tmp_path / "run")])
    assert "redraft study run demo" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_every_key_of_a_study_is_listed_with_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list", "keys", "--json"])
    keys = json.loads(capsys.readouterr().out)["keys of a study"]
    parts = {"": StudyConfig, "arm.": ArmConfig, "arm.grid.": GridConfig, "frontier.": FrontierConfig}
    expected = {prefix + name for prefix, part in parts.items() for name in part.model_fields}
    tables = {"arm", "arm.grid", "arm.grid.centre", "frontier"}
    assert expected - tables <= keys.keys() and "arm.grid.centre.params" in keys
    assert [key for key, row in keys.items() if not row["summary"]] == []
    assert "arm.families" in keys and validated(FamilyConfig, {"name": "ar"}) and "family.name" not in keys
    assert RunConfig.model_fields.keys().isdisjoint(keys)
