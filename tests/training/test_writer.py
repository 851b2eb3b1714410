"""Checkpoints of one device that are written while training goes on. Here a CPU stands in for a GPU."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from redraft.errors import UserError
from redraft.runs.run import train
from redraft.training import checkpoint
from redraft.training.checkpoint import STATE, cursor_of
from redraft.training.journal import read_events
from redraft.training.setup import set_up
from redraft.training.trainer import Trainer
from tests.small_runs import corpus, tiny

SAVE, STEPS = 7, 30


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


@pytest.fixture(autouse=True)
def _beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redraft.training.monitor.accelerated", lambda device: True)


class Slow:
    """A disk that takes its time: a write ends when it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: tuple[int, ...] = ()):
        self.begun, self.go, self.fails, self.really = list[int](), threading.Event(), fails, checkpoint.write
        monkeypatch.setattr(checkpoint, "write", self.write)

    def write(self, path: Path, cursor: checkpoint.Cursor, tensors: dict[str, Any]) -> None:
        self.begun.append(cursor.step)
        assert self.go.wait(60)
        if cursor.step in self.fails:
            raise UserError("no space is left here")
        self.really(path, cursor, tensors)


def trainer_of(source: Path, folder: Path, **over: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer.start(set_up(tiny(source, budget={"steps": STEPS}, train={"ema": 0.9, **over})), folder)


def copied(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.state().items()}


def test_steps_go_on_while_a_state_is_written_and_it_is_that_of_its_step(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trainer_of(source, tmp_path / "plain")
    states = [copied(plain) for _ in plain.run()]
    slow, trainer = Slow(monkeypatch), trainer_of(source, tmp_path / "run", save_every=SAVE)
    steps = train(trainer, tmp_path / "run")
    assert next(steps).step == 10 and slow.begun == [SAVE]
    assert not (tmp_path / "run" / STATE).exists(), "three steps later it is still being written"
    slow.go.set()
    for record in steps:
        assert record.step in (20, 30)
    assert slow.begun == [7, 14, 21, 28, 30]
    saved = load_file(tmp_path / "run" / STATE)
    assert cursor_of(tmp_path / "run" / STATE).step == STEPS
    assert all(torch.equal(saved[name], tensor) for name, tensor in states[-1].items())


def test_a_state_is_not_that_of_a_later_step(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held until the loop waits for it, before the next: what is written then is from three steps and more before."""
    slow, trainer = Slow(monkeypatch), trainer_of(source, tmp_path / "run", save_every=SAVE)
    at, found = dict[int, dict[str, torch.Tensor]](), list[int]()
    write, state = slow.really, trainer.state

    def compared(path: Path, cursor: checkpoint.Cursor, tensors: dict[str, torch.Tensor]) -> None:
        write(path, cursor, tensors)
        saved = load_file(path)
        assert all(torch.equal(saved[name], tensor) for name, tensor in at[cursor.step].items())
        found.append(cursor.step)

    def kept() -> dict[str, torch.Tensor]:
        at[trainer.step] = {name: tensor.clone() for name, tensor in state().items()}
        return state()

    slow.really, trainer.state = compared, kept  # type: ignore[method-assign]
    steps = train(trainer, tmp_path / "run")
    next(steps)
    threading.Timer(0.2, slow.go.set).start()
    list(steps)
    assert found == [7, 14, 21, 28, 30]


def test_left_early_it_waits_for_the_state_of_its_last_step(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, trainer = Slow(monkeypatch), trainer_of(source, tmp_path / "run", save_every=SAVE)
    steps = train(trainer, tmp_path / "run")
    next(steps)
    threading.Timer(0.2, slow.go.set).start()
    steps.close()
    assert cursor_of(tmp_path / "run" / STATE).step == 10
    assert [path.name for path in (tmp_path / "run").glob("state*")] == [STATE]


def test_what_the_disk_refuses_is_an_event_and_twice_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch, fails=(8, 16, 20))
    slow.go.set()
    trainer = trainer_of(source, tmp_path / "run", save_every=4)
    with pytest.raises(UserError, match="2 checkpoints in a row could not be written: no space is left"):
        list(train(trainer, tmp_path / "run"))
    events = [e for e in read_events(tmp_path / "run" / "journal.jsonl") if e["kind"] == "save failed"]
    assert 8 <= events[0]["step"] <= 12 and "the one before is kept" in events[0]["text"]
    assert cursor_of(tmp_path / "run" / STATE).step == 12
