"""What is shown says what it is: two numbers have two names, a setting acts or is refused, a size says what it counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from redraft.cli import main
from redraft.commands import study, task
from redraft.commands.study_queue import _row, _sentence
from redraft.config import RunConfig, dump_toml, read_toml, validated
from redraft.display import Left, quantity
from redraft.network.sizes import LADDER, from_size, size_sentence
from redraft.registry import SAMPLERS, steps_remark
from tests.small_runs import corpus

SMALL = ["--network.depth", "1", "--network.heads", "1", "--network.width", "16", "--network.cond", "8"]
SMALL += ["--length", "16", "--batch", "4", "--train.threads", "1", "--evaluate.rows", "4", "--evaluate.draws", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of three families."""
    source, folder = corpus(tmp_path_factory.mktemp("prose")), tmp_path_factory.mktemp("runs")
    for family in ("ar", "mdlm", "d3pm"):
        words = ["--family", family, "--data", str(source), "--steps", "3", "--json", *SMALL]
        main(["train", "--into", str(folder / family), *words])
    return folder


def test_training_and_scoring_have_two_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = corpus(tmp_path / "prose")
    main(["train", "--into", str(tmp_path / "run"), "--data", str(source), "--steps", "3", *SMALL])
    shown = capsys.readouterr()
    assert "objective " in shown.err and "loss" not in shown.err
    assert "validation loss " in shown.out.splitlines()[-1]


def test_a_run_under_way_has_an_objective_and_a_finished_one_a_loss() -> None:
    from redraft.commands.plan import recipe_table
    from redraft.planning.study import plan_study
    from redraft.studies.execute import Status

    run = plan_study(recipe_table("demo")).runs[0]
    busy, done = (Status(run, state, 1, 2.5) for state in ("running", "done"))
    assert "objective 2.5000" in _sentence(busy) and "validation loss 2.5000" in _sentence(done)
    assert [(_row(s)["loss"], _row(s)["objective"]) for s in (busy, done)] == [(None, 2.5), (2.5, None)]


def test_steps_act_or_a_remark_says_that_they_do_not() -> None:
    for name, entry in SAMPLERS.items():
        assert steps_remark(name, None) is None
        told = steps_remark(name, 7)
        assert (
            told is None if "steps" in entry.options else told and told.startswith(f"sampler '{name}' takes no steps")
        )


def test_sampling_left_to_right_says_that_steps_change_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sample", str(runs / "ar"), "--steps", "8", "--length", "8", "--json"])
    with_steps = capsys.readouterr()
    assert "sampler 'left_to_right' takes no steps" in with_steps.err and "--steps 8 changes nothing" in with_steps.err
    main(["sample", str(runs / "ar"), "--json", "--length", "8"])
    told = capsys.readouterr()
    assert "steps" not in told.err and json.loads(told.out)["texts"] == json.loads(with_steps.out)["texts"]
    main(["sample", str(runs / "mdlm"), "--json", "--length", "8", "--steps", "3"])


def test_a_mixture_names_no_other_source(tmp_path: Path) -> None:
    mixture = [{"source": "a.txt", "weight": 1.0}, {"source": "b.txt", "weight": 2.0}]
    for data in ({"mixture": mixture}, {"phases": [{"until": 1.0, "mixture": mixture}]}):
        config = validated(RunConfig, {"data": data})
        (tmp_path / "config.toml").write_text(dump_toml(config))
        assert "stdlib" not in (tmp_path / "config.toml").read_text()
        assert validated(RunConfig, read_toml(tmp_path / "config.toml")) == config
    assert 'source = "stdlib"' in dump_toml(RunConfig())


def test_the_bound_of_d3pm_is_called_what_it_is(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["eval", str(runs / "d3pm"), "--json", "--rows", "4"])
    assert json.loads(capsys.readouterr().out)["estimator"]["name"] == "discrete_time"
    with pytest.raises(SystemExit):
        main(["eval", str(runs / "d3pm"), "--estimator", "continuous_time"])
    assert "a chain of 1000 steps. Try: discrete_time" in capsys.readouterr().err


@pytest.mark.parametrize("estimator", ["continuous_time", "mask_count", "importance_weighted"])
def test_an_evaluation_says_beforehand_what_it_costs(
    estimator: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["eval", str(runs / "mdlm"), "--rows", "2", "--draws", "1", "--estimator", estimator])
    shown = capsys.readouterr()
    passes = {"importance_weighted": 2 * 16 * 16}.get(estimator, 2)
    assert shown.err.startswith(
        f"Scoring 2 windows of at most 16 tokens: {passes} passes of a row through the network, about"
    )
    assert "nats/token by" in shown.out


def test_progress_says_how_much_is_left() -> None:
    left = Left(4000, "passes")
    left.began -= 10
    assert left(1000) == "1k of 4k passes, 30 s left"
    assert left(4000) == "4k of 4k passes"


def test_a_size_says_what_it_counts(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = from_size("200k", "dit", 257)
    assert f"{shape.block_weights:,} weights" in size_sentence("200k", shape)
    assert "counts the blocks' matrices" in size_sentence("200k", shape)
    assert "is a name of SMDM's ladder" in size_sentence("6M", from_size("6M", "dit", 257)) and "6M" in LADDER
    main(["plan", "--size", "200k", "--steps", "1", "--rate", "1e10"])
    assert size_sentence("200k", shape) in capsys.readouterr().out
    main(["plan", "--size", "200k", "--steps", "1", "--rate", "1e10", "--json"])
    assert json.loads(capsys.readouterr().out)["block_weights"] == shape.block_weights
    main(["list", "keys"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("network.size"))
    assert "weights in the matrices of the blocks" in line
    record = json.loads((runs / "mdlm" / "record.json").read_text())
    assert record["block_weights"] == 12 * 16**2


def test_quantities_change_their_letter_after_rounding() -> None:
    assert [quantity(value, "FLOPs") for value in (999.6e9, 999.4e9, 1e12)] == ["1 TFLOPs", "999 GFLOPs", "1 TFLOPs"]
    assert quantity(999_999) == "1M" and quantity(0) == "0" and quantity(-999_999) == "-1M"


@pytest.mark.parametrize(("verb", "parts"), [("study", study.PARTS), ("task", task.PARTS)])
def test_help_of_a_part_is_its_own(verb: str, parts: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    module = {"study": study, "task": task}[verb]
    from redraft.cli import Parser

    parser = Parser()
    module.arguments(parser)
    flags = {action.dest: max(action.option_strings, key=len) for action in parser._actions if action.option_strings}
    reached = {"help"}
    for part, of in module.PARTS.items():
        main([verb, part, "--help"])
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: redraft {verb} {part} ")
        words = set(shown.replace("[", " ").replace("]", " ").replace(",", " ").split())
        for name, flag in flags.items():
            assert (flag in words) == (name in ("help", *of.takes)), f"{part}: {flag}"
        reached |= set(of.takes)
    assert reached >= flags.keys()
    assert set(module.PARTS) == set(study.ACTIONS if verb == "study" else task.TASKS)


def test_help_of_the_verb_still_names_all_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    main_help = ["study", "--help"]
    with pytest.raises(SystemExit):
        main(main_help)
    assert all(f"redraft study {part}" in capsys.readouterr().out for part in ("run",))
