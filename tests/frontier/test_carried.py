"""A frontier as models of another size: calls are those measured, what a call costs is that of the size asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from redraft.cli import main
from redraft.errors import UserError
from redraft.evaluation.compute import Compute
from redraft.frontier.carried import at_size, carried_file, carried_sentence, carry, cost_sentence, left, matched
from redraft.frontier.measure import Checkpoint, measure_models, read_rows
from redraft.frontier.pareto import FRONTIER
from redraft.frontier.served import serve
from redraft.hub.model import load
from redraft.network.flops import parameters
from redraft.planning.serving_cost import HARDWARE
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out
from redraft.studies.execute import RUNS
from tests.frontier.test_measure import SETTINGS, bench
from tests.small_runs import corpus, tiny

SIZE = "60k"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two families at two temperatures, measured as a study would be."""
    folder, models = tmp_path_factory.mktemp("study"), {}
    source = corpus(tmp_path_factory.mktemp("prose"))
    for family in ("ar", "mdlm"):
        models[family] = folder / RUNS / f"{family}-tiny"
        for _ in carry_out(open_run(tiny(source, family=family, budget={"steps": 20}), models[family]), models[family]):
            pass
    settings = SETTINGS.model_copy(update={"temperatures": [0.7, 1.5], "batches": [6]})
    checkpoints = [Checkpoint(name, path.name, path) for name, path in models.items()]
    list(measure_models(checkpoints, folder, bench(models, settings=settings)))
    return folder


def test_quality_is_carried_over_and_cost_is_of_the_size(study: Path) -> None:
    new = list(carry(study, SIZE, Compute("cpu")))
    old = [json.loads(line) for line in (study / FRONTIER).read_text().splitlines()]
    small = {(r["name"], r["steps"], r["temperature"]): r for r in old}
    assert len(new) == len(old) - 1 == 6  # held-out text costs nothing
    for row in new:
        of = small[row["name"], row["steps"], row["temperature"]]
        assert all(row[key] == of[key] for key in ("quality", "entropy", "nfe", "distinct_2"))
        assert row["flops_per_token"] > 4 * of["flops_per_token"] and row["params"] > 4 * row["params_measured"]
        # of two batches the median is the mean
        assert row["tokens_per_second"] == pytest.approx(6 * 16 / (row["nfe"] * row["seconds_per_call"]))
    by_setting = {(r["name"], r["steps"]): r["seconds_per_call"] for r in new}
    assert all(r["seconds_per_call"] == by_setting[r["name"], r["steps"]] for r in new)
    assert list(carry(study, SIZE, Compute("cpu"))) == []
    said = carried_sentence(read_rows(study / carried_file(SIZE)))
    assert "As 60k" in said and "Measured here, with random weights" in said and "Carried over from runs of" in said
    assert list(matched(study, carried_file(SIZE), None)) == [6]


def test_the_flops_of_a_call_are_the_ledgers(study: Path) -> None:
    """MDLM reads the whole canvas in every call: FLOPs grow as the weights do, but for what grows with the width alone."""
    model = load(study / RUNS / "mdlm-tiny", "cpu")
    large = at_size(model, SIZE)
    assert large.network.shape.block_weights == pytest.approx(60_000, rel=0.2)
    assert large.family == model.family and large.network.shape.vocab == model.network.shape.vocab
    assert sum(parameters(large.network.shape).values()) > sum(model.parameters.values())


def test_a_torn_file_goes_on(study: Path, tmp_path: Path) -> None:
    list(carry(study, SIZE, Compute("cpu")))
    path = study / carried_file(SIZE)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:30])
    assert len(list(carry(study, SIZE, Compute("cpu")))) == 1
    assert len(read_rows(study / carried_file(SIZE))) == len(lines)


def test_other_batches_are_timed_and_keep_the_quality(study: Path) -> None:
    """AR calls once a token whoever is beside it, MDLM only where a row changes."""
    told = cost_sentence(left(study, "70k", [1, 4]), "70k")
    assert "As 70k: 6 settings to time" in told and "with 1, 4 rows each" in told
    assert len(list(carry(study, "70k", Compute("cpu"), [1, 4]))) == 12
    assert left(study, "70k", [1]) == {} and list(matched(study, carried_file("70k"), None)) == [1, 4]
    rows = [row for row in read_rows(study / carried_file("70k")) if row["family"] != "text"]
    old = {(r["name"], r["steps"], r["temperature"]): r for r in read_rows(study / FRONTIER)}
    assert len(rows) == 12 and {row["batch"] for row in rows} == {1, 4}
    for row in rows:
        of = old[row["name"], row["steps"], row["temperature"]]
        assert row["quality"] == of["quality"] and row["nfe"] <= of["nfe"]
        assert row["nfe"] == of["nfe"] or row["family"] != "ar"
        assert row["tokens_per_second"] == pytest.approx(row["batch"] * 16 / (row["nfe"] * row["seconds_per_call"]))


def test_only_the_batches_are_anew(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["study", "frontier", str(study), "--as", SIZE, "--temperatures", "[1.0]"])
    assert stop.value.code == 2 and "so no --temperatures" in capsys.readouterr().err


def test_flags_of_other_actions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["study", "fit", "runs.csv", "--as", "6M"], ["study", "report", "studies/a", "--name", "b"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2 and f"takes no {command[3]}" in capsys.readouterr().err


def test_nothing_is_carried_over_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no measured frontier to carry over"):
        next(carry(tmp_path, SIZE, Compute("cpu")))


def test_hardware_that_is_not_here_has_a_file_of_its_own(study: Path) -> None:
    """Kept whole, read back by the comparison at one entropy, with the calls that were measured."""
    rows = serve(study, "6M", HARDWARE["h100"], [1, 6])
    place = study / carried_file("6M", "h100")
    assert read_rows(place) == json.loads(json.dumps(rows)) and len(rows) == 1 + 2 * 6
    assert list(matched(study, place.name, None)) == [1, 6]
    alone = {(row["family"], row["steps"]): row for row in rows[1:] if row["batch"] == 1}
    ar, few = alone["ar", 16], alone["mdlm", min(steps for family, steps in alone if family == "mdlm")]
    # a call of a short text reads the weights, so speed goes with the calls; AR's cache is little beside them
    assert ar["nfe"] / few["nfe"] <= few["tokens_per_second"] / ar["tokens_per_second"] < 1.02 * ar["nfe"] / few["nfe"]


def test_hardware_is_for_another_size(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["study", "frontier", str(study), "--hardware", "h100"])
    assert stop.value.code == 2 and "give --as SIZE too" in capsys.readouterr().err
