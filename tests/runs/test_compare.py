"""Comparing two results: what differs is refused by name, and what is left is said with its error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from redraft.cli import dispatch
from redraft.config import merge
from redraft.errors import UserError
from redraft.runs.compare import Comparison, compare, read_result

RECORD = {
    "family": "ar", "loss": 2.0, "loss_sampling_se": 0.01, "loss_kind": "exact", "bits_per_byte": 2.5, "windows": 100,
    "length": 64, "flops": 1e12, "convention": "6ND",
    "data": {"source": "a.txt", "validation": None, "sha256": "s" * 64, "tokenizer_fingerprint": "t" * 64},
}  # fmt: skip
EVAL = {
    "family": "mdlm", "nats": 2.0, "sampling_error": 0.01, "bits_per_byte": 2.5, "bits_per_byte_se": 0.01, "exact": False,
    "text_sha256": "x" * 64, "tokenizer": "bytes", "windows": 10, "share": 1.0,
    "convention": {"length": 64, "wrap": "stream", "stride": 64, "framed": False, "detokenize": "none"},
    "estimator": {"name": "continuous_time"},
}  # fmt: skip
TASKS: dict[str, Any] = {
    "settings": {
        "family": "AR(vocab=257)", "guidance": {"weight": 0.0, "kind": "unsupervised"},
        "estimator": {"name": "chain_rule"}, "default_estimator": True, "draws": 32,
    },
    "limit": None, "requests": {"truncated": 0},
    "tasks": {
        "piqa": {
            "version": 1, "shots": 0, "n": 40, "higher_is_better": {"acc": True}, "documents": [str(i) for i in range(40)],
            "metrics": {"acc": {"value": 0.5, "stderr": 0.08}}, "outcomes": {"acc": [1.0] * 20 + [0.0] * 20},
        }
    },
}  # fmt: skip


def compared(folder: Path, a: Any, b: Any) -> dict[str, Comparison]:
    for name, table in (("a", a), ("b", b)):
        (folder / f"{name}.json").write_text(json.dumps(table))
    return {line.metric: line for line in compare(*(read_result(folder / f"{n}.json") for n in "ab")).lines}


@pytest.mark.parametrize(
    ("over", "nats", "bits"),
    [
        ({"data": {"tokenizer_fingerprint": "u" * 64}}, "tokenizer", "part"),
        ({"windows": 50}, "windows", "part"),
        ({"length": 32}, "length", "part"),
        ({"data": {"source": "b.txt", "sha256": "o" * 64}}, "text", "text"),
    ],
)
def test_records_of_unlike_questions_are_refused(tmp_path: Path, over: Any, nats: str, bits: str) -> None:
    """Bits per byte too: so many windows of so many tokens are not the same part of a text."""
    lines = compared(tmp_path, RECORD, merge(RECORD, {"loss": 3.0, "bits_per_byte": 3.5, **over}))
    assert [line.refused.partition(":")[0] for line in lines.values()] == [nats, bits]
    assert not any(line.verdict for line in lines.values())


def test_one_text_may_have_two_names(tmp_path: Path) -> None:
    lines = compared(tmp_path, RECORD, merge(RECORD, {"loss": 3.0, "bits_per_byte": 3.5, "data": {"source": "b.txt"}}))
    assert [line.verdict for line in lines.values()] == ["a is better", "a is better"]


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"loss": 2.02}, "not told apart"),
        ({"loss": 2.2}, "a is better"),
        ({"loss": 2.2, "loss_kind": "bound", "family": "duo"}, "undecided: b's number is a bound"),
        ({"loss": 1.8, "loss_kind": "bound", "family": "duo"}, "b is better, by at least this"),
    ],
)
def test_a_bound_above_a_likelihood_decides_nothing(tmp_path: Path, theirs: Any, said: str) -> None:
    lines = compared(tmp_path, RECORD, {**RECORD, **theirs})
    assert lines["nats_per_token"].verdict.startswith(said)


def test_bounds_of_two_families_carry_a_warning(tmp_path: Path) -> None:
    ours = {**RECORD, "loss_kind": "bound", "family": "mdlm"}
    lines = compared(tmp_path, ours, {**ours, "family": "duo", "loss": 3.0})
    assert "not equally tight" in lines["nats_per_token"].verdict


@pytest.mark.parametrize(("keys", "more"), [(2, ""), (11, ", and 3 keys more")])
def test_runs_say_in_what_they_differ(tmp_path: Path, keys: int, more: str) -> None:
    for name, value in (("a", 1), ("b", 2)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "record.json").write_text(json.dumps(RECORD))
        train = "".join(f"key{number} = {value}\n" for number in range(keys))
        (folder / "config.toml").write_text(f"seed = 0\n[train]\n{train}")
    (note,) = compare(*(read_result(tmp_path / name) for name in "ab")).notes
    assert note.startswith("the runs differ in train.key0 1 against 2, train.key1 1 against 2")
    assert note.endswith(more or "train.key1 1 against 2") and "seed" not in note


def test_another_budget_is_noted(tmp_path: Path) -> None:
    compared(tmp_path, RECORD, {**RECORD, "flops": 2e12})
    found = compare(read_result(tmp_path / "a.json"), read_result(tmp_path / "b.json"))
    assert "1e+12 against 2e+12 FLOPs" in found.notes[0]


@pytest.mark.parametrize(
    ("over", "nats", "bits"),
    [
        ({"convention": {"wrap": "documents"}}, "convention", "windowing"),
        ({"convention": {"stride": 32}}, "convention", ""),
        ({"tokenizer": "gpt2"}, "tokenizer", ""),
        ({"text_sha256": "y" * 64}, "text", "text"),
        ({"share": 0.5}, "", "share"),
    ],
)
def test_perplexities_under_other_conventions_are_refused(tmp_path: Path, over: Any, nats: str, bits: str) -> None:
    lines = compared(tmp_path, EVAL, merge(EVAL, over))
    assert lines["nats_per_token"].refused.partition(":")[0] == nats
    assert lines["bits_per_byte"].refused.partition(":")[0] == bits


def test_an_error_that_is_not_known_tells_nothing_apart(tmp_path: Path) -> None:
    lone = {**EVAL, "nats": 3.0, "sampling_error": None, "bits_per_byte": None, "bits_per_byte_se": None}
    lines = compared(tmp_path, EVAL, lone)
    assert list(lines) == ["nats_per_token"] and lines["nats_per_token"].verdict == "not told apart"


def test_what_is_not_told_apart_says_what_could_have_been(tmp_path: Path) -> None:
    """1.960 + .8416 standard errors of the difference; nothing where a difference was found or the error is not known."""
    close = compared(tmp_path, RECORD, {**RECORD, "loss": 2.02})["nats_per_token"]
    assert close.error and close.detectable == pytest.approx(2.8016 * close.error, rel=1e-3)
    assert compared(tmp_path, RECORD, {**RECORD, "loss": 2.2})["nats_per_token"].detectable is None


def test_tasks_are_compared_document_by_document(tmp_path: Path) -> None:
    """Ten documents better and none worse: 1/1024 each way, although the two shares alone are not told apart."""
    theirs = merge(TASKS, {"tasks": {"piqa": {"metrics": {"acc": {"value": 0.75, "stderr": 0.07}}}}})
    theirs["tasks"]["piqa"]["outcomes"] = {"acc": [1.0] * 30 + [0.0] * 10}
    line = compared(tmp_path, TASKS, theirs)["piqa acc"]
    assert line.p == pytest.approx(2 / 1024) and line.verdict == "b is better"


def test_other_draws_are_noted_unless_nothing_is_drawn(tmp_path: Path) -> None:
    for draws, noted in ((64, True), (1, False)):
        compared(tmp_path, TASKS, merge(TASKS, {"settings": {"draws": draws}}))
        found = compare(read_result(tmp_path / "a.json"), read_result(tmp_path / "b.json"))
        assert any("32 against 64" in note for note in found.notes) == noted


@pytest.mark.parametrize(
    ("over", "refused"),
    [
        ({"limit": 10}, "limit"),
        ({"settings": {"default_estimator": False}}, "estimator"),
        ({"tasks": {"piqa": {"version": 2}}}, "version of piqa"),
        ({"tasks": {"piqa": {"shots": 5}}}, "examples of piqa"),
        ({"tasks": {"piqa": {"documents": ["0"]}}}, "documents of piqa"),
    ],
)
def test_tasks_asked_otherwise_are_refused(tmp_path: Path, over: Any, refused: str) -> None:
    assert compared(tmp_path, TASKS, merge(TASKS, over))["piqa acc"].refused.startswith(refused)


def test_guided_accuracies_are_compared_and_noted(tmp_path: Path) -> None:
    theirs = merge(TASKS, {"settings": {"guidance": {"weight": 1.0}}})
    assert not compared(tmp_path, TASKS, theirs)["piqa acc"].refused
    notes = compare(*(read_result(tmp_path / f"{n}.json") for n in "ab")).notes
    assert any(note.startswith("guidance: ") and "must not be chosen on these documents" in note for note in notes)


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*none\.json"):
        read_result(tmp_path / "none.json")
    with pytest.raises(UserError, match="holds no finished run"):
        read_result(tmp_path)
    with pytest.raises(UserError, match="measure nothing in common"):
        compared(tmp_path, RECORD, TASKS)
    for table in ({}, [1], {"estimator": {}, "exact": True}):
        (tmp_path / "x.json").write_text(json.dumps(table))
        with pytest.raises(UserError, match=r"x\.json is (no result|a damaged result)"):
            read_result(tmp_path / "x.json")


def test_the_verb_prints_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared(tmp_path, RECORD, merge(RECORD, {"windows": 50}))
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    dispatch(["compare", *files])
    said = capsys.readouterr().out
    assert "not comparable: windows: 100 against 50 (other windows are other questions)" in said
    dispatch(["compare", *files, "--json"])
    table = json.loads(capsys.readouterr().out)
    assert [line["metric"] for line in table["metrics"]] == ["nats_per_token", "bits_per_byte"]
