"""What the end of a study needs, its judges and its rows of validation, is opened and counted before its folder is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from redraft.cli import main
from redraft.commands import study_results
from redraft.commands.study_queue import carry_out
from redraft.config import dump_toml, validated
from redraft.errors import UserError
from redraft.evaluation.generation.evaluator_files import check_evaluator
from redraft.planning.study import StudyConfig
from tests.hub.models import folder
from tests.small_runs import corpus


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


def recipe(prose: Path, frontier: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    base = {"data": {"source": str(prose), "length": 16, **data}, "train": {"device": "cpu"}, "network": {"cond": 8}}
    arm = {"families": ["mdlm"], "sizes": ["3.1k"], "flops": [1e12]}
    return {"base": base, "arm": [arm]} | ({"frontier": frontier} if frontier else {})


def judges(tmp_path: Path) -> dict[str, str]:
    """Judges that are none, and what is said of each."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "alone.bin").write_bytes(b"1234")
    (tmp_path / "torn.gguf").write_bytes(b"GGUF")
    bound = folder(tmp_path / "mdlm", "mdlm", "llama")
    bare = folder(tmp_path / "bare", "ar", "llama")
    (bare / "model.safetensors").unlink()
    return {
        str(tmp_path / "none.gguf"): "no such judge",
        str(tmp_path / "text.txt"): "is no judge",
        str(tmp_path / "alone.bin"): r"no tok\*.bin",
        str(tmp_path / "torn.gguf"): "cannot load the judge",
        str(tmp_path / "empty"): "cannot load the judge|is not on this machine",
        str(bound): "must have an exact likelihood; 'mdlm' has a bound",
        str(bare): "holds no weights",
        "nobody/never": "is not on this machine",
    }


def test_a_judge_that_cannot_judge_is_told_before_the_first_run(prose: Path, tmp_path: Path) -> None:
    for judge, says in judges(tmp_path).items():
        for role in (
            {"judge": judge},
            {"judge": {"families": ["ar"], "sizes": ["3.1k"], "flops": [1e9]}, "source": judge},
        ):
            with pytest.raises(UserError, match=says) as caught:
                carry_out(recipe(prose, role), tmp_path / "study", quiet=True)
            assert "\n" not in str(caught.value) and not (tmp_path / "study").exists()


def test_an_evaluator_by_flag_is_the_judge(prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the recipe's, under the name that `race` has for it."""
    table = recipe(prose, {"judge": {"families": ["ar"], "sizes": ["3.1k"], "flops": [1e9]}})
    seen: list[Any] = []
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.toml").write_text(dump_toml(validated(StudyConfig, table)))
    monkeypatch.setattr(
        study_results, "measure_frontier", lambda folder, compute, quiet, settings: seen.append(settings)
    )
    for flag in ("--evaluator", "--judge"):
        main(["study", "frontier", str(tmp_path / "study"), flag, "models/smollm2"])
    assert [settings.judge for settings in seen] == ["models/smollm2"] * 2


def test_a_judge_that_can_is_not_refused(tmp_path: Path) -> None:
    check_evaluator(folder(tmp_path / "ar", "ar", "llama"))
    (tmp_path / "tok512.bin").write_bytes(b"")
    (tmp_path / "stories.bin").write_bytes(b"")
    check_evaluator(tmp_path / "stories.bin")


@pytest.mark.parametrize(("data", "says"), [
    ({"length": 20000}, "fewer than one row of 20000"),
    ({"validation": "absent.txt"}, "no file or folder absent.txt"),
])  # fmt: skip
def test_rows_of_validation_are_counted_before_the_first_run(
    data: dict[str, Any], says: str, prose: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        carry_out(recipe(prose, **data), tmp_path / "study", quiet=True)
    assert not (tmp_path / "study").exists()


def test_a_taken_folder_is_told_before_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(json.dumps("mine"))
    with pytest.raises(UserError, match="is not empty and holds no study"):
        carry_out(recipe(tmp_path / "absent"), tmp_path, quiet=True)
