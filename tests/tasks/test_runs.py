"""Tasks from end to end, tiny: what is done is not done again, and records hold what tables say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from redraft.cli import main
from redraft.errors import UserError
from redraft.tasks.puzzles.lists import Lists
from redraft.tasks.puzzles.task import PuzzleTask
from redraft.tasks.puzzles.task import summary as puzzle_summary
from redraft.tasks.reversal import Reversal, share, summary
from redraft.tasks.runs import carry_out_all
from tests.small_runs import tiny

SMALL = {"network": {"width": 16, "heads": 2}, "train": {"batch": 4}, "evaluate": {"rows": 8, "draws": 1}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path / "cache"))


def test_every_family_has_the_same_data_network_and_steps(tmp_path: Path) -> None:
    jobs = Reversal(tmp_path, seeds=2, people=2).jobs()
    assert len(jobs) == 2 * 2 * 4 == len({job.folder for job in jobs})
    for seed in (1, 2):
        mine = [job.config for job in jobs if job.config.seed == seed]
        assert len({config.model_copy(update={"family": mine[0].family}).model_dump_json() for config in mine}) == 2
    assert {job.config.data.source for job in jobs if job.config.seed == 1}.isdisjoint(
        job.config.data.source for job in jobs if job.config.seed == 2
    )


def test_a_changed_setting_is_another_run(tmp_path: Path) -> None:
    one, other = (Reversal(tmp_path, seeds=1, people=2, over=over).jobs()[0] for over in ({}, {"train": {"lr": 1e-3}}))
    assert one.folder != other.folder


def test_reversal_runs_and_is_not_run_again(tmp_path: Path) -> None:
    task = Reversal(tmp_path, ("ar", "mdlm", "duo", "esolm"), seeds=1, steps=(4,), people=2, over=SMALL)
    assert len(list(carry_out_all(task.jobs(), workers=1))) == 4
    runs = list(task.measure())
    stamps = {job.folder: (job.folder / "answers.json").stat().st_mtime_ns for job in task.jobs()}
    assert not list(carry_out_all(task.jobs(), workers=1))
    assert list(task.measure()) == runs
    assert {job.folder: (job.folder / "answers.json").stat().st_mtime_ns for job in task.jobs()} == stamps
    rows = summary(runs)
    assert [row["family"] for row in rows] == ["ar", "mdlm", "duo", "esolm"]
    assert len({row["flops"] for row in rows}) == 1, "equal steps are equal FLOPs"
    assert rows[0]["infill"] is None and rows[1]["infill"] is not None


def test_people_weigh_alike() -> None:
    run = {"tests": [{"group": "p2d", "kind": "reversed", "people": [[4, 4], [0, 1]]}]}
    found = share([run], "reversed")
    assert found is not None and found.value == 0.5


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--families", "mdlm", "--seeds", "1", "--steps", "3", "--people", "2", "--workers", "1", "--json"]
    small = ["--network.width", "16", "--network.heads", "2", "--train.batch", "4"]
    main(["task", "reversal", "--into", str(tmp_path / "t"), *flags, *small])
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "t" / "reversal.json").read_text())
    assert record["summary"][0]["steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["revrsal"], "Did you mean 'reversal'"),
        (["gsm8k"], "needs --from and --train and --test"),
        (["speed"], "needs --source"),
        (["shift", "--data", "stdlib"], "needs --before and --after"),
        (["reversal", "--steps", "many"], "--steps must be a whole number"),
        (["reversal", "--families", "mdml"], "mdlm"),
        (["arithmetic", "--order", "random"], "order of digits"),
        (["graphs", "--paths", "4", "--edges", "6"], "--nodes 25 or more"),
        (["sudoku", "--side", "5"], "--side takes 4, 6, 9"),
        (["sudoku", "--side", "4", "--blanks", "17"], "from 1 to 16"),
        (["lists", "--items", "30"], "from 2 to 20"),
        (["lists", "--operations", "sort,sotr"], "Did you mean 'sort'"),
        (["wordproblems", "--chain", "12"], "there are 12"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["task", *arguments, "--into", str(tmp_path)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_puzzle_is_scored_by_group_and_by_sampling_steps(tmp_path: Path) -> None:
    over = {**SMALL, "budget": {"steps": 3}}
    puzzle = Lists(4, 6, ("copy", "shuffle"))
    task = PuzzleTask(
        tmp_path, puzzle, ("ar", "mdlm"), training=(3,), examples=50, asked=5, sampling=(1, 4), over=over
    )  # fmt: skip
    list(carry_out_all(task.jobs(), workers=1))
    runs = list(task.measure())
    cells = [(1, "copy", 5), (1, "shuffle", 5), (4, "copy", 5), (4, "shuffle", 5)]
    assert all([(a["sampling_steps"], a["group"], a["asked"]) for a in run["answers"]] == cells for run in runs)
    rows = puzzle_summary(runs)
    assert [(row["family"], row["loss_kind"]) for row in rows] == [("ar", "exact")] * 4 + [("mdlm", "bound")] * 4


def test_a_gsm8k_run_from_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Questions too long for a row are left out and counted."""
    from redraft.runs.claim import open_run
    from redraft.runs.run import carry_out
    from tests.small_runs import corpus

    start = tmp_path / "start"
    config = tiny(corpus(tmp_path / "text"), budget={"steps": 2}, data={"length": 64})
    list(carry_out(open_run(config, start), start))
    traces = tmp_path / "traces.txt"
    lines = [f"What is {a} + {a}?||<<{a}+{a}={2 * a}>> #### {2 * a}" for a in range(40)] + [f"{'Why ' * 30}?|| #### 1"]
    traces.write_text("\n".join(lines) + "\n")
    files = ["--train", str(traces), "--test", str(traces), "--limit", "4", "--sampling-steps", "4", "--steps", "3"]
    main(["task", "gsm8k", "--into", str(tmp_path / "t"), "--from", str(start), *files, "--workers", "1", "--json"])
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert (row["asked"], row["skipped"]) == (4, 1)
    assert 0 <= row["right"] <= row["formed"] <= 4
    assert row["record"]["data"]["scored_tokens"] < row["record"]["data"]["tokens"]


def test_years_part_documents(tmp_path: Path) -> None:
    from redraft.tasks.shift import by_year

    path = tmp_path / "books.jsonl"
    years = [1800 + i for i in range(20)] + [1910, 1920, "8 AD", None, 1870]
    path.write_text("".join(json.dumps({"year": year, "text": f"written in {year}"}) + "\n" for year in years))
    older, held_out, newer = (Path(p).read_text().splitlines() for p in by_year([path], 1850, 1900, tmp_path / "data"))
    assert (len(older), len(held_out), len(newer)) == (18, 2, 2)
    assert not set(older) & set(held_out)
    with pytest.raises(UserError, match="no document is newer"):
        by_year([path], 1850, 2000, tmp_path / "data")


def test_shift_scores_newer_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "books.jsonl"
    words = {1800: "thou art ", 1920: "you are "}
    rows = [{"year": year, "text": f"{n}. " + word * 200} for year, word in words.items() for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [
        "--families",
        "ar,mdlm",
        "--seeds",
        "1",
        "--steps",
        "2,4",
        "--workers",
        "1",
        "--before",
        "1850",
        "--after",
        "1900",
    ]
    small = ["--network.width", "16", "--train.batch", "2", "--length", "16", "--evaluate.rows", "8", "--json"]
    main(["task", "shift", "--into", str(tmp_path / "t"), "--data", str(path), *flags, *small])
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(run["family"], run["steps"]) for run in runs] == [("ar", 2), ("mdlm", 2), ("ar", 4), ("mdlm", 4)]
    assert all(run["newer"] > 0 and run["older"] > 0 for run in runs)


def test_ranks_compare_runs_of_equal_questions_across_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two lengths of training in folders of their own: pairs within a family."""
    for steps, right, loss in ((300, 2, 1.0), (900, 8, 0.5)):
        folder = tmp_path / str(steps)
        (folder / "data" / "c8c1884d8db0").mkdir(parents=True)
        answers = [{"sampling_steps": 0, "asked": 10, "right": right}]
        run = {"family": "ar", "seed": 1, "steps": steps, "loss": loss, "answers": answers}
        (folder / "lists.json").write_text(json.dumps({"runs": [run]}))
    main(
        [
            "task",
            "ranks",
            "--into",
            str(tmp_path / "r"),
            "--json",
            "--from",
            *(str(tmp_path / s) for s in ("300", "900")),
        ]
    )
    across, within = json.loads(capsys.readouterr().out)["summary"]
    assert (across["pairs"], within["of"], within["pairs"], within["value"]) == (0, "within ar", 1, 1.0)
