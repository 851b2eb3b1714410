"""Texts for a file of prompts: those of `Model.sample`, whole or continued; mistakes are told before anything begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from redraft.cli import main
from redraft.hub.model import Model, load
from redraft.serving import many
from tests.hub.models import folder

PROMPTS = [{"prompt": "ab"}, {"prompt": ""}, {"prompt": "the cat", "max_tokens": 5}, {"prompt": "x", "suffix": "yz"}]


def asked(path: Path, family: str) -> list[dict[str, object]]:
    rows = PROMPTS[:3] if family in ("ar", "bd3lm") else PROMPTS
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def in_float64(path: Path, *place: str) -> Model:
    """No rounding of company decides a draw."""
    model = load(path, "cpu")
    model.network.double()
    model.network.compute = torch.float64
    return model


@pytest.mark.parametrize("family", ["ar", "mdlm", "duo", "esolm", "bd3lm"])
def test_texts_are_those_of_offline_rows(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_float64(folder(tmp_path / "m", family, "dit"))
    monkeypatch.setattr("redraft.evaluation.compute.load", in_float64)
    rows = asked(tmp_path / "asked.jsonl", family)
    words = [
        "--prompts",
        str(tmp_path / "asked.jsonl"),
        "--into",
        str(tmp_path / "out.jsonl"),
        "-n",
        "2",
        "--seed",
        "3",
    ]
    main(["sample", str(tmp_path / "m"), *words, "--steps", "4", "--rows", "3", "--device", "cpu", "--json"])
    assert json.loads(capsys.readouterr().out)["texts"] == 2 * len(rows)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, line in zip(rows, found, strict=True):
        prompt, suffix = str(row["prompt"]), str(row.get("suffix", ""))
        length = len(prompt) + int(str(row["max_tokens"])) if "max_tokens" in row else 24
        assert line["prompt"] == prompt
        assert line["texts"] == model.sample(prompt, 2, length, 4, seed=3, suffix=suffix)
    assert not list(tmp_path.glob("*.partial"))


def test_an_interrupted_file_is_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "m", "mdlm", "dit")
    asked(tmp_path / "asked.jsonl", "mdlm")
    command = ["sample", str(tmp_path / "m"), "--prompts", str(tmp_path / "asked.jsonl"), "--json", "--rows", "1"]
    main([*command, "--into", str(tmp_path / "whole.jsonl")])
    written = many.written

    def killed(*args: object, **more: object):  # type: ignore[no-untyped-def]
        for count, found in enumerate(written(*args, **more)):  # type: ignore[arg-type]
            if count == 2:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(many, "written", killed)
    into = tmp_path / "out.jsonl"
    with pytest.raises(SystemExit):
        main([*command, "--into", str(into)])
    partial = tmp_path / "out.jsonl.partial"
    assert not into.exists() and len(partial.read_text().splitlines()) == 3
    partial.write_text(partial.read_text() + '{"place": 3, "te')  # killed while it wrote
    monkeypatch.setattr(many, "written", written)
    with pytest.raises(SystemExit):
        main([*command, "--into", str(into), "--seed", "1"])
    assert "was begun with other prompts or settings" in capsys.readouterr().err
    main([*command, "--into", str(into)])
    assert json.loads(capsys.readouterr().out)["written_now"] == 2
    assert into.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and not partial.exists()


@pytest.mark.parametrize(
    ("content", "words", "told"),
    [
        ('{"prompt": "a"}', ["--prompt", "b"], "--prompt is for one prompt"),
        ('{"prompt": 3}', [], "line 1 of"),
        ('{"prompt": "a", "max_tokens": 0}', [], "must be a whole number of at least 1"),
        ('{"prompt": "' + "a" * 30 + '"}', [], "leave no room"),
        ("{", [], "line 1"),
    ],
)
def test_mistakes_leave_nothing_behind(
    content: str, words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path / "m", "mdlm", "dit")
    (tmp_path / "asked.jsonl").write_text(content)
    with pytest.raises(SystemExit):
        main(
            [
                "sample",
                str(tmp_path / "m"),
                "--prompts",
                str(tmp_path / "asked.jsonl"),
                "--into",
                str(tmp_path / "o"),
                *words,
            ]
        )
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asked.jsonl", "m"]
