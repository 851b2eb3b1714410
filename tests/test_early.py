"""What needs no torch to be seen is told before torch is loaded; and where a path leads nowhere, the message says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from redraft.cli import main
from redraft.errors import UserError
from redraft.files import disk, read_text, whereabouts
from redraft.registry import ESTIMATORS, TARGETS
from redraft.text.sources.corpus import find_files, open_source
from redraft.text.sources.formats import ACCEPTED, is_usable, read_documents

MISTAKES = [
    (["train", "--into", "r", "--data", "absent.txt", "--steps", "1"], "there is no file or folder absent.txt"),
    (["train", "--into", "r", "--data.validation", "absent.txt", "--steps", "1"], "no file or folder absent.txt"),
    (["train", "--into", "r", "--train.lrr", "1", "--steps", "1"], "Did you mean 'train.lr'"),
    (["train", "--into", "r", "--family", "doo", "--steps", "1"], "Did you mean 'duo'"),
    (["train", "--into", "r", "--size", "3Q", "--steps", "1"], "unknown size '3Q'"),
    (["train", "--into", "r", "--tokenizer", "absent.json", "--steps", "1"], "no tokenizer 'absent.json'"),
    (["train", "--into", "r", "--from", "runs/frist"], "no such model folder: runs/frist (did you mean runs/first?)"),
    (["train", "absent.toml", "--into", "r"], "no such recipe: absent.toml"),
    (["train", "--into", "r"], "no budget"),
    (["eval", "runs/frist"], "no such model folder: runs/frist (did you mean runs/first?)"),
    (["eval", "runs/first", "--estimator", "mask_cuont"], "Did you mean 'mask_count'"),
    (["eval", "runs/first", "--data", "absent.txt"], "there is no file or folder absent.txt"),
    (["eval", "runs/first", "--tasks", "picqa"], "Did you mean 'piqa'"),
    (["eval", "runs/first", "--tasks", "mine.yaml"], "no such task file: mine.yaml"),
    (["eval", "runs/first", "--tasks", "piqa", "--data-dir", "absent"], "no such task file: absent/piqa"),
    (["sample", "runs/frist"], "no such model folder: runs/frist"),
    (["sample", "runs/first", "--sampler", "ancestrl"], "Did you mean 'ancestral'"),
    (["sample", "runs/first", "--sampler", "psi", "--sampler.kapa", "1"], "Did you mean 'kappa'"),
    (["answer", "runs/frist", "--questions", "q", "--into", "a"], "no such model folder: runs/frist"),
    (["answer", "runs/first", "--questions", "absent", "--into", "a"], "no such file: absent"),
    (["export", "runs/frist", "--to", "native", "--into", "out"], "no such model folder: runs/frist"),
    (["export", "runs/first", "--to", "gguff", "--into", "out"], "Did you mean 'gguf'"),
    (["push", "runs/frist", "a/b"], "no such model folder: runs/frist"),
    (["convert", "absent.ckpt", "out"], "no such checkpoint: absent.ckpt"),
    (["convert", "absent.ckpt", "out", "--family", "doo"], "Did you mean 'duo'"),
    (["compare", "runs/first", "runs/frist"], "no such run folder or result file: runs/frist"),
    (["study", "run", "demoo", "--into", "s"], "Did you mean 'demo'"),
    (["study", "run", "demo", "--into", "s", "--train.lrr", "1"], "Did you mean 'train.lr'"),
    (["study", "run", "demo", "--into", "s", "--data", "absent.txt"], "there is no file or folder absent.txt"),
    (["study", "status", "runz"], "no such study folder: runz (did you mean runs?)"),
    (["study", "frontier", "absent"], "no such study folder: absent"),
    (["study", "fit", "absent.csv"], "absent.csv does not exist"),
    (["demo", "--recipe", "demoo"], "Did you mean 'demo'"),
    (["task", "reversl", "--into", "t"], "Did you mean 'reversal'"),
    (["task", "reversal", "--into", "t", "--families", "ar,doo"], "Did you mean 'duo'"),
    (["task", "reversal", "--into", "t", "--train.lrr", "1"], "Did you mean 'train.lr'"),
    (["task", "shift", "--into", "t", "--data", "absent.txt"], "there is no file or folder absent.txt"),
    (["task", "gsm8k", "--into", "t", "--from", "runs/frist"], "no such model folder: runs/frist"),
]
PROGRAM = """
import contextlib, io, json, sys
from redraft.cli import main
told = []
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said): main(arguments)
        status = 0
    except SystemExit as stopped: status = stopped.code
    told.append([status, said.getvalue(), "torch" in sys.modules])
print(json.dumps(told))
"""
MODEL = {
    "model_type": "redraft", "version": 1, "family": "mdlm", "options": {}, "length": 16, "tokenizer": "", "record": {},
    "shape": {"block": "dit", "depth": 1, "heads": 1, "width": 16, "hidden": 64, "vocab": 257},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, as far as its config.json goes."""
    folder = tmp_path_factory.mktemp("early")
    (folder / "runs" / "first").mkdir(parents=True)
    (folder / "runs" / "first" / "config.json").write_text(json.dumps(MODEL))
    return folder


@pytest.fixture(scope="module")
def told(place: Path) -> list[tuple[int, str, bool]]:
    """Status, words, and whether torch had been loaded, of every mistake: in one process, in turn."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([words for words, _ in MISTAKES])],
        capture_output=True, text=True, check=True, cwd=place,
    )  # fmt: skip
    return [tuple(one) for one in json.loads(done.stdout)]


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[" ".join(words) for words, _ in MISTAKES])
def test_mistakes_are_told_before_torch_is_loaded(number: int, told: list[tuple[int, str, bool]], place: Path) -> None:
    status, words, torch = told[number]
    assert status == 2 and MISTAKES[number][1] in words and words.count("\n") == 1, words
    assert not torch, "an earlier mistake or this one loaded torch"
    assert [path.name for path in place.iterdir()] == ["runs"]


def test_a_folder_that_was_meant_and_a_name_on_the_hub_are_both_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redraft.hub import config

    def unreachable(name: str) -> Path:
        raise UserError(f"cannot fetch {name}: it cannot be reached")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "fetch", unreachable)
    with pytest.raises(UserError) as refused:
        config.located("mine/typo")
    assert str(refused.value) == (
        "no such model folder: mine/typo; and as a name on the hub, owner/name: cannot fetch mine/typo: it cannot be reached"
    )
    with pytest.raises(UserError) as refused:  # nobody on the hub is called `runs`
        config.located("runs/typo")
    assert str(refused.value) == "no such model folder: runs/typo"


def test_the_names_that_are_told_without_torch_are_the_true_ones() -> None:
    from redraft.evaluation.likelihood import estimators
    from redraft.hub.export import export

    assert set(ESTIMATORS) == set(estimators.ESTIMATORS)
    assert set(TARGETS) == set(export.TARGETS)


def test_why_nothing_is_at_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere.txt")
    (tmp_path / "loop").symlink_to("loop")
    for name, why in (
        ("dangling", f" ({tmp_path}/dangling is a link to nowhere.txt, which leads nowhere)"),
        ("dangling/below", f" ({tmp_path}/dangling is a link to nowhere.txt, which leads nowhere)"),
        ("loop", f" ({tmp_path}/loop is a link to loop, which leads nowhere)"),
        ("file/below", f" ({tmp_path}/file is a file)"),
        ("file", f" ({tmp_path}/file is a file)"),
        ("flie", f" (did you mean {tmp_path}/file?)"),
        ("something else", ""),
    ):
        assert whereabouts(tmp_path / name) == why
    with pytest.raises(UserError, match=r"no such file: .*dangling \(.*dangling is a link to nowhere.txt, which leads"):
        read_text(tmp_path / "dangling")


def test_a_link_to_no_text_is_not_left_out_in_silence(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / ".#a.txt").symlink_to("an-editor@here:1")
    (tmp_path / "notes").symlink_to("nowhere")
    assert find_files(str(tmp_path), is_usable, ACCEPTED) == [tmp_path / "a.txt"]
    (tmp_path / "b.txt").symlink_to("nowhere.txt")
    for spec in (tmp_path, tmp_path / "b.txt", tmp_path / "*.txt"):
        with pytest.raises(UserError, match=r"b\.txt is a link to nowhere\.txt, which leads nowhere"):
            open_source(str(spec))


def refusing(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Makes a file one that may not be read, also for root."""
    opened = Path.open

    def open_(self: Path, *arguments: object, **named: object) -> object:
        if self == path:
            raise PermissionError(13, os.strerror(13), str(self))
        return opened(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", open_)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some text")
    refusing(monkeypatch, path)
    with pytest.raises(UserError, match=r"a\.txt cannot be read: Permission denied\.$"):
        next(iter(read_documents(path)))


def test_what_is_read_while_a_folder_is_written_is_blamed_itself(tmp_path: Path) -> None:
    for name, said in (
        (tmp_path / "elsewhere" / "in.txt", f"cannot read {tmp_path}/elsewhere/in.txt: Permission denied"),
        (tmp_path / "cache" / "out", f"cannot write in {tmp_path}/cache: Permission denied"),
        (tmp_path, f"cannot write in {tmp_path}/cache: Permission denied"),
    ):
        with pytest.raises(UserError) as refused, disk(tmp_path / "cache"):
            raise PermissionError(13, os.strerror(13), str(name))
        assert str(refused.value) == said


def test_a_place_that_may_not_be_looked_into_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(self: Path) -> bool:
        raise PermissionError(13, os.strerror(13), str(self))

    monkeypatch.setattr(Path, "is_dir", forbidden)
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "/closed/run"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "redraft: cannot read or write /closed/run: Permission denied\n"
