"""What the end of a run needs is asked for at its beginning, and what its settings cannot do is said there."""

from __future__ import annotations

import json
import math
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redraft.cli import main
from redraft.commands.plan_sentences import exports, exports_sentence
from redraft.commands.train import result_sentence
from redraft.config import TrainConfig, dump_toml
from redraft.errors import UserError
from redraft.evaluation.likelihood.nelbo import exponential
from redraft.hub.export.export import TARGETS, refusal
from redraft.hub.model import load
from redraft.planning.lr_schedule import idle, learning_rate
from redraft.planning.validation_rows import foreseen
from redraft.registry import FAMILIES
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out, read_record
from redraft.training.setup import held_out, set_up
from tests.hub.models import folder
from tests.small_runs import corpus, tiny


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("short") / "v.txt"
    path.write_text("some words.\n" * 5)
    return path


def refused(config: Any, folder: Path, says: str) -> None:
    with pytest.raises(UserError, match=says):
        open_run(config, folder)
    assert not folder.exists()


def data(long: Path, short: Path, how: str) -> dict[str, Any]:
    ours, theirs = {"source": str(long)}, {"source": str(long), "validation": str(short), "weight": 0.5}
    mixtures = {"mixture": [ours, theirs]}
    phases = {"phases": [{"until": 0.5, "mixture": [ours]}, {"mixture": [theirs]}]}
    single = {"source": str(long), "validation": str(short)}
    return {"length": 256, **{"source": single, "mixture": mixtures, "phases": phases}[how]}


@pytest.mark.parametrize("how", ["source", "mixture", "phases"])
def test_validation_shorter_than_a_row_is_told_before_the_folder_is_claimed(
    how: str, long: Path, short: Path, tmp_path: Path
) -> None:
    config = tiny(long)
    config = type(config).model_validate({**config.model_dump(), "data": data(long, short, how)})
    refused(config, tmp_path / "x", "the validation split of .* holds .* tokens, fewer than one row of 256")


def test_a_source_of_an_earlier_phase_alone_need_not_hold_a_row_out(long: Path, short: Path, tmp_path: Path) -> None:
    told = data(long, short, "phases")
    first, last = told["phases"]
    phases = [{**last, "until": 0.5}, {"mixture": first["mixture"]}]
    config = tiny(long)
    open_run(
        type(config).model_validate({**config.model_dump(), "data": {"length": 256, "phases": phases}}), tmp_path / "x"
    )


@pytest.mark.parametrize("rows", [1, 3, 8, 10**6])
def test_the_rows_that_are_counted_are_those_that_are_scored(rows: int, long: Path) -> None:
    setup = set_up(tiny(long, evaluate={"rows": rows}))
    scored = held_out(setup.corpus, setup.config.data, setup.tokenizer.eos, setup.config.evaluate.rows)
    assert setup.validation_rows == len(scored.tokens) <= rows


@pytest.mark.parametrize("family", ["ar", "mdlm"])
def test_train_and_eval_score_the_same_windows_and_say_how_many(
    family: str, long: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One name, one number: the validation windows of the record are those that `eval` scores, unless told otherwise."""
    for _ in carry_out(open_run(tiny(long, family=family), tmp_path / "run"), tmp_path / "run"):
        pass
    record, tables = read_record(tmp_path / "run"), []
    for more in ([], ["--rows", "11"], ["--draws", "3"]):
        main(["eval", str(tmp_path / "run"), "--device", "cpu", "--json", *more])
        tables.append(json.loads(capsys.readouterr().out))
    assert [table["windows"] for table in tables] == [record["windows"], 11, record["windows"]] and record[
        "windows"
    ] == 8
    assert tables[0]["nats"] == pytest.approx(record["loss"], rel=1e-6)  # in batches of other sizes: float32 rounds
    assert tables[0]["draws"] == record["draws"] and tables[1]["nats"] != pytest.approx(record["loss"], rel=1e-4)
    assert result_sentence(record).endswith(", 8 windows of validation text")


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("how", ["text", "own", "few", "mixture", "phases", "prompts"])
def test_a_plan_counts_the_rows_that_training_will_score(
    how: str, prepared: bool, long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "v.txt").write_text("some other words.\n" * 9)
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}", "completion": f"{n}"}) + "\n" for n in range(90))
    )
    rest = {"source": str(long), "validation": str(tmp_path / "v.txt")}
    told: dict[str, Any] = {
        "text": {"source": str(long)}, "own": rest, "few": {**rest, "length": 100},
        "mixture": {"mixture": [{"source": str(long), "weight": 3}, {**rest, "weight": 1.0}]},
        "phases": {"phases": [{"until": 0.5, "mixture": [rest]}, {"mixture": [{"source": str(long)}]}]},
        "prompts": {"source": str(tmp_path / "p.jsonl"), "format": "prompts", "length": 100},
    }[how]  # fmt: skip
    config = tiny(long, evaluate={"rows": 40})
    config = type(config).model_validate({**config.model_dump(), "data": {"length": 16, **told}})
    if prepared:
        set_up(config)
    found = foreseen(config.data, config.evaluate.rows)
    assert found.why == "" and found.rows == set_up(config).validation_rows
    assert ("examples" if how == "prompts" else "rows of") in found.sentence


@pytest.mark.parametrize("how", ["source", "mixture", "phases"])
def test_a_plan_says_that_the_validation_text_is_shorter_than_a_row(
    how: str, long: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(long)
    config = type(config).model_validate({**config.model_dump(), "data": data(long, short, how)})
    (tmp_path / "r.toml").write_text(dump_toml(config))
    main(["plan", str(tmp_path / "r.toml"), "--rate", "1e9"])
    said = capsys.readouterr().out
    assert "tokens, fewer than one row: training will be refused" in said
    main(["plan", str(tmp_path / "r.toml"), "--rate", "1e9", "--json"])
    assert json.loads(capsys.readouterr().out)["validation"]["rows"] == 0


def test_a_plan_of_text_that_is_elsewhere_says_that_nobody_counted(capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("absent.txt", "hf:nobody/never"):
        main(["plan", "--data", source, "--steps", "3", "--size", "3.1k", "--rate", "1e9"])
        assert "Validation: not counted (" in capsys.readouterr().out


@pytest.mark.parametrize("block", ["llama", "dit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exports_are_foreseen_as_they_are_refused(family: str, block: str, tmp_path: Path) -> None:
    config = tiny(tmp_path, family=family, network={"block": block})
    model = load(folder(tmp_path / "m", family, block), "cpu")
    assert set(exports(config)) == {target for target in TARGETS if refusal(model, target) is None}
    said = exports_sentence(config)
    assert ("--network.block llama" in said) == (family == "ar" and block == "dit")
    assert ("--family ar" in said) == (family != "ar" and (family, block) != ("mdlm", "llama"))
    assert ("LLaDA" in said) == ((family, block) == ("mdlm", "llama"))


def test_a_package_that_an_export_lacks_is_told_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path, family="ar", network={"block": "llama"})
    monkeypatch.setattr("redraft.commands.plan_sentences.find_spec", lambda name: None)
    assert "a GGUF file (needs: pip install 'redraft[gguf]')" in exports_sentence(config)
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert all(any(need.startswith("gguf") for need in extras[name]) for name in ("gguf", "judge"))


def test_twenty_examples_with_one_to_validate_on_become_a_model(
    long: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row has no spread: its error is unknown, which strict JSON writes as null."""
    (tmp_path / "examples.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i} + 1 =", "completion": f" {i + 1}"}) + "\n" for i in range(20))
    )
    small = ["--network.depth", "1", "--network.heads", "1", "--network.width", "16", "--train.threads", "1"]
    given = ["--data", str(tmp_path / "examples.jsonl"), "--steps", "2", "--batch", "2", "--length", "64", *small]
    main(["train", "--into", str(tmp_path / "x"), "--family", "ar", *given])
    assert "Validation: one row" in capsys.readouterr().out
    record = read_record(tmp_path / "x")
    assert record["windows"] == 1 and record["loss_sampling_se"] is None and math.isfinite(record["loss"])
    main(["eval", str(tmp_path / "x"), "--json"])
    assert json.loads(capsys.readouterr().out)["sampling_error"] is None
    main(["compare", str(tmp_path / "x"), str(tmp_path / "x")])


def test_a_perplexity_beyond_all_floats_is_unknown() -> None:
    assert exponential(1e4) is None and exponential(math.nan) is None and exponential(1.0) == math.e


def test_a_disk_without_room_for_weights_and_states_is_told_at_once(
    long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(tiny(long), tmp_path / "x", "are free: free some")


IDLE: list[tuple[dict[str, Any], str]] = [
    ({"warmup": 100}, "the peak rate train.lr is never reached"),
    ({"schedule": "wsd", "decay": 0.01}, "the rate never falls"),
    ({"schedule": "wsd", "warmup": 90, "decay": 0.5}, "within the warm-up"),
    ({"ema": 0.9999}, "more than the 100 of the run"),
    ({"save_every": 1000}, "no state is saved on the way"),
]


@pytest.mark.parametrize(("settings", "says"), IDLE, ids=[says for _, says in IDLE])
def test_settings_that_cannot_act_are_said_beforehand(
    settings: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for key, value in settings.items() for word in (f"--train.{key}", str(value))]
    main(["plan", "--steps", "100", "--rate", "1e10", *flags])
    assert f"{says}" in capsys.readouterr().out
    assert idle(TrainConfig(), 100) == []


@pytest.mark.parametrize("warmup", [0, 0.5, 10, 99, 100, 400])
@pytest.mark.parametrize("decay", [0.001, 0.01, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_what_is_said_of_rates_is_what_they_do(warmup: float, decay: float, schedule: Any) -> None:
    config = TrainConfig(warmup=warmup, decay=decay, schedule=schedule, min_lr=0.0)
    rates = np.array([learning_rate(config, step, 100) for step in range(100)])
    told = " ".join(idle(config, 100))
    assert ("never reached" in told) == (warmup >= 100)
    if schedule == "wsd" and warmup < 100:
        assert ("never falls" in told) == bool(np.all(np.diff(rates) >= 0))
