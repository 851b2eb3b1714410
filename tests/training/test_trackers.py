"""Trackers: told everything, and whatever befalls them, the run does not notice."""

from __future__ import annotations

import importlib.machinery
import sys
import time
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from redraft.errors import UserError
from redraft.training import trackers
from redraft.training.trackers import Tracker, TrackerQueue, open_trackers

RECORD = {
    "step": 10,
    "loss": 2.5,
    "lr": 1e-3,
    "grad_norm": 0.5,
    "tokens": 640,
    "flops": 1e9,
    "seconds": 1.0,
    "kind": "step",
}


class Heard:
    """What a played library was told."""

    def __init__(self) -> None:
        self.init: dict[str, Any] = {}
        self.logged: list[tuple[int | None, dict[str, float]]] = []
        self.summary: dict[str, float] = {}
        self.finished = 0

    def log(self, numbers: dict[str, float], step: int | None = None) -> None:
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.finished += 1


def play(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """A library of that name that does what `members` do."""
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_curves_are_told_every_record_and_the_result(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()

    def init(**settings: Any) -> Heard:
        heard.init = settings
        return heard

    play(monkeypatch, name, init=init)
    found = open_trackers([name], tmp_path / "run", {"seed": 3})
    for step in (10, 20):
        found.log({**RECORD, "step": step})
    found.log({"kind": "rollback", "step": 20, "text": "words are not drawn"})
    found.close({"loss": 2.0, "bits_per_byte": None, "name": "run"})
    curve = [(step, numbers["loss"]) for step, numbers in heard.logged if step is not None]
    assert curve == [(10, 2.5), (20, 2.5)]
    final = heard.summary or heard.logged[-1][1]
    assert final == {"final/loss": 2.0} and heard.finished == 1
    assert heard.init["resume"] == "allow" and heard.init["config"] == {"seed": 3}


def test_a_continued_run_goes_on_in_the_same_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    play(monkeypatch, "wandb", init=lambda **settings: ids.append(settings["id"]) or Heard())
    for folder in ("run", "run", "other"):
        open_trackers(["wandb"], tmp_path / folder, {}).close()
    assert ids[0] == ids[1] != ids[2]


def test_tensorboard_forgets_the_steps_that_are_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            made.append((folder, purge_step, self))
            self.scalars: list[tuple[str, float, int]] = []

        def add_scalar(self, *words: Any) -> None:
            self.scalars.append(words)

        def add_hparams(self, *words: Any) -> None: ...

        def close(self) -> None: ...

    play(monkeypatch, "tensorboard")
    play(monkeypatch, "torch.utils.tensorboard", SummaryWriter=Writer)
    found = open_trackers(["tensorboard"], tmp_path / "run", {})
    found.log({**RECORD, "step": 30})
    found.close()
    folder, purged, writer = made[0]
    assert folder == str(tmp_path / "run" / "tensorboard") and purged == 30
    assert ("loss", 2.5, 30) in writer.scalars


class Failing(Tracker):
    """Fails where it is told to."""

    def __init__(self, where: str, error: BaseException) -> None:
        self.where, self.error = where, error
        if where == "made":
            raise error

    def log(self, step: int, numbers: Any) -> None:
        if self.where == "told":
            raise self.error

    def close(self, summary: Any) -> None:
        if self.where == "closed":
            raise self.error


@pytest.mark.parametrize("where", ["made", "told", "closed"])
@pytest.mark.parametrize("error", [ConnectionError("no network"), SystemExit(1), KeyboardInterrupt()])
def test_a_tracker_that_fails_is_named_once_and_told_no_more(
    where: str, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    one = TrackerQueue("curves", lambda: Failing(where, error))
    found = trackers.Trackers([one])
    for step in range(100):
        found.log({**RECORD, "step": step})
    found.close()
    assert type(error).__name__ in one.why
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "curves fell out" in said[0] and "the run goes on" in said[0]


def test_a_tracker_that_hangs_keeps_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    """Records beyond the queue are dropped at once, and the end of the run waits as long as it said."""
    stuck, name = Event(), SimpleNamespace(log=lambda *words: stuck.wait(), close=lambda summary: None)
    one = TrackerQueue("curves", lambda: name)  # type: ignore[arg-type, return-value]
    found, began = trackers.Trackers([one]), time.monotonic()
    for step in range(3 * trackers.WAITING):
        found.log({**RECORD, "step": step})
    assert time.monotonic() - began < 2 and one.dropped >= trackers.WAITING
    began = time.monotonic()
    found.close(patience=0.2)
    assert time.monotonic() - began < 2
    assert "did not finish within 0.2 s" in capsys.readouterr().err
    stuck.set()


def test_trackers_that_are_not_there_are_refused_before_anything_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="Did you mean 'wandb'"):
        open_trackers(["wanbd"], tmp_path, {})
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"--track trackio needs the package 'trackio'"):
        open_trackers(["trackio"], tmp_path, {})


def test_nobody_looks_on_unless_asked(tmp_path: Path) -> None:
    found = open_trackers([], tmp_path, {})
    found.log(RECORD)
    found.close()
