"""`redraft race`: laws of its numbers, what it leaves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.cli import main
from redraft.evaluation.generation.evaluators import RedraftEvaluator
from redraft.frontier.race import Course, Lap, Racer, Written, batches, laps, work, written
from redraft.frontier.race_quality import Bench, judged
from redraft.hub.model import load
from redraft.serving.writing import token_log_p
from tests.hub.models import folder

PROMPTS = ("ab", "", "the cat")
COURSE = Course(PROMPTS, length=16, texts=7, batch=3, alone=4)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    into = tmp_path_factory.mktemp("models")
    return {name: folder(into / name, name, "dit") for name in ("ar", "mdlm", "duo")}


@pytest.fixture(scope="module")
def racers(places: dict[str, Path]) -> list[Racer]:
    """In float64, so that no rounding of company decides a draw."""
    out = [Racer(name, load(place, "cpu"), "", (2, 5), COURSE) for name, place in places.items()]
    for racer in out:
        racer.model.network.double()
        racer.model.network.compute = torch.float64
    return out


def test_a_text_alone_is_its_row_of_a_batch(racers: list[Racer]) -> None:
    for lap in laps(racers, 1.0, lambda: None):
        rows = torch.cat([one.tokens for one in lap.batches])
        assert torch.equal(rows[: COURSE.alone], torch.cat([one.tokens for one in lap.alone]))
        for number, row in enumerate(rows):
            prompt = lap.racer.prompts[number % len(PROMPTS)]
            assert torch.equal(row[: len(prompt)], prompt) and len(row) == COURSE.length
        assert sum(one.new for one in lap.batches) == sum(16 - len(PROMPTS[n % 3]) for n in range(COURSE.texts))


def test_pieces_of_work_are_as_many_as_said(racers: list[Racer]) -> None:
    count = [0]
    made = list(laps(racers, 1.0, lambda: count.__setitem__(0, count[0] + 1)))
    assert count[0] == work(racers, 0) == 5 * (4 + 3)
    assert [(lap.racer.name, lap.steps) for lap in made] == [
        ("ar", 16), ("mdlm", 2), ("mdlm", 5), ("duo", 2), ("duo", 5)
    ]  # fmt: skip
    assert [len(numbers) for numbers in batches(COURSE)] == [3, 3, 1]


def test_percentiles_are_of_the_slow_end(racers: list[Racer]) -> None:
    alone = tuple(Written(torch.zeros(1, 4), 4, second, 2) for second in range(1, 102))
    lap = Lap(racers[0], 4, alone, alone)
    assert lap.latency() == [51, 91, 100] and lap.calls == 2
    assert lap.rates() == pytest.approx([4 / 51, 4 / 91, 4 / 100], rel=0.02)


def test_a_prompt_costs_nothing(racers: list[Racer]) -> None:
    """What is scored is -log p of the written tokens given the prompt, whatever the prompt was."""
    ar, lap = racers[0], next(laps(racers[:1], 1.0, lambda: None))
    evaluator = RedraftEvaluator.of(ar.model)
    found = judged([lap], 1.0, Bench(evaluator, [], (), 1.0), lambda: None).speeds
    scored = found.scores["ar", lap.steps, 1.0, 1.0]
    rows = torch.cat([one.tokens for one in lap.batches])
    starts = [len(PROMPTS[number % 3]) for number in range(COURSE.texts)]
    exact = [token_log_p(ar.model, row.numpy(), at, 0) for row, at in zip(rows, starts, strict=True)]
    wanted = [-sum(token.log_p or 0.0 for token in one) for one in exact]
    assert scored.nats == pytest.approx(wanted, rel=1e-5)
    assert scored.tokens.tolist() == [16 - len(PROMPTS[n % 3]) for n in range(COURSE.texts)]


def test_sweeps_go_on_until_the_entropy_lies_between_two_settings(racers: list[Racer]) -> None:
    ran = list(laps(racers[:2], 1.0, lambda: None))
    evaluator = RedraftEvaluator.of(racers[0].model)
    found = judged(ran, 1.0, Bench(evaluator, [], (0.9,), 1.2), lambda: None)
    assert found.matching and len(found.matching.matches) + len(found.matching.misses) == len(ran)
    for match in found.matching.matches:
        curve = [
            p.speed.entropy for p in found.speeds.places if (p.speed.name, p.speed.steps) == (match.name, match.steps)
        ]
        assert min(curve) <= 1.2 <= max(curve)


def race(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(["race", *words, "--texts", "4", "--batch", "2", "--alone", "2", "--length", "12", "--steps", "2,4"])
    return capsys.readouterr().out


def test_the_command_says_its_cost_and_ends_in_a_table_and_a_figure(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("A held-out text of some length, which says little. " * 400)
    (tmp_path / "asked.txt").write_text("ab\nthe c\n")
    words = [
        str(places["ar"]),
        f"small={places['mdlm']}",
        "--evaluator",
        str(places["ar"]),
        "--text",
        str(tmp_path / "text.txt"),
    ]
    words += ["--prompts", str(tmp_path / "asked.txt"), "--figure", str(tmp_path / "race.svg")]
    main(["race", *words, "--texts", "4", "--batch", "2", "--alone", "2", "--length", "12", "--steps", "2,4"])
    shown = capsys.readouterr()
    cost = "Racing ar (ar, 12 steps), small (mdlm, 2 and 4 steps): 2 texts alone and 4 in batches of 2 at each"
    assert cost in shown.err
    assert [line.split()[:2] for line in shown.out.splitlines()[1:4]] == [["ar", "12"], ["small", "2"], ["small", "4"]]
    assert "nats, that of held-out text" in shown.out
    assert "T: temperature; calls: passes through the network, of which steps" in shown.out
    assert (tmp_path / "race.svg").read_text().startswith("<svg")


def test_what_is_not_in_the_table_is_not_explained(places: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    shown = race(capsys, str(places["mdlm"]))
    assert "Calls: passes through the network" in shown and "T: " not in shown


def test_json_has_every_setting(places: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = json.loads(
        race(capsys, str(places["mdlm"]), str(places["duo"]), "--json", "--sampler", "duo=psi")
    )
    assert [(s["model"], s["steps"], s["sampler"]) for s in found["settings"]] == [
        ("mdlm", 2, "ancestral"), ("mdlm", 4, "ancestral"), ("duo", 2, "psi"), ("duo", 4, "psi")
    ]  # fmt: skip
    assert all(set(s["latency"]) == set(s["tokens_per_second"]) == {"p50", "p90", "p99"} for s in found["settings"])
    assert "evaluator" not in found and found["texts"] == 4


MISTAKES = [
    (["nowhere"], "no such model folder: nowhere"),
    (["AR", "AR"], "two models are called 'ar'"),
    (["AR", "--steps", "0"], "--steps must be at least 1, got 0"),
    (["AR", "--steps", ","], "--steps must be numbers between commas"),
    (["AR", "--texts", "1"], "--texts must be at least 2"),
    (["AR", "--sampler", "psy"], "unknown sampler 'psy'. Did you mean 'psi'?"),
    (["AR", "--sampler", "other=psi"], "no model is called 'other', but ar"),
    (["AR", "--sampler", "psi"], "sampler 'psi' cannot serve family 'ar'"),
    (["AR", "--figure", "race.gif"], "must end in .svg, .png or .pdf"),
    (["AR", "--figure", "nowhere/race.svg"], "there is no folder"),
    (["AR", "--entropy", "2"], "--entropy is for quality: name a model by --evaluator too"),
    (["AR", "--prompts", "none.txt"], "no such file of prompts: none.txt"),
    (["AR", "--evaluator", "MDLM"], "a judge must have an exact likelihood"),
    (["AR", "--evaluator", "AR"], "does not say what text it was trained on: give --text SOURCE, or --entropy NATS"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line(
    words: list[str], said: str, places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"AR": str(places["ar"]), "MDLM": str(places["mdlm"])}
    with pytest.raises(SystemExit) as left:
        main(["race", *(known.get(word, word) for word in words)])
    shown = capsys.readouterr()
    assert left.value.code == 2 and said in shown.err and shown.err.count("\n") == 1 and not shown.out


def test_a_prompt_that_leaves_no_room_is_refused(racers: list[Racer], places: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("a prompt of many bytes\n")
    with pytest.raises(SystemExit):
        main(["race", str(places["ar"]), "--length", "12", "--prompts", str(tmp_path / "asked.txt")])
    assert written(racers[0], [2], 2, 1.0).new == 16 - len(PROMPTS[2])


def test_an_interrupted_race_leaves_nothing(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("redraft.frontier.race.written", stop)
    with pytest.raises(SystemExit) as left:
        main(["race", str(places["ar"]), "--figure", str(tmp_path / "race.svg"), "--alone", "1"])
    assert left.value.code == 130 and "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
