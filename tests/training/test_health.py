"""What can go wrong in a run is told by a stated rule and answered by another; all ranks decide alike."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.errors import Diverged, UserError
from redraft.runs.run import train
from redraft.training.health import ROLLBACKS, SKIPS, SPIKE_LEAST, SPIKE_STEPS, Slowness, Spikes
from redraft.training.journal import Event, Journal, StepRecord, last_record, read_events, read_journal
from redraft.training.setup import set_up
from redraft.training.trainer import Trainer
from tests.small_runs import corpus, tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


def test_a_spike_is_told_once_and_only_when_it_stays() -> None:
    spikes = Spikes(2.0 + 0.01 * (n % 3) for n in range(SPIKE_LEAST))
    limit = spikes.limit()
    assert limit == pytest.approx(2.01 + 10 * 0.0201)  # 1% of the median is above 1.4826 x 0.01
    assert [spikes.looks(limit + 1) for _ in range(SPIKE_STEPS + 2)] == [False, False, True, False, False]
    assert not spikes.looks(2.0) and spikes.high == 0
    assert not any(spikes.looks(loss) for loss in (9.0, 9.0, 2.0, 9.0, 9.0, 2.0))


def test_a_falling_loss_is_no_spike() -> None:
    spikes = Spikes()
    assert not any(spikes.looks(6.0 / (1 + n / 50)) for n in range(400))
    assert not any(Spikes(range(SPIKE_LEAST - 1)).looks(1e9) for _ in range(9)), "too few losses to compare with"


def test_a_slow_rank_is_told_once_it_has_been_slow_for_long_enough() -> None:
    slowness = Slowness()
    found = [slowness.looks([1.0, 1.1, third, 0.9]) for third in (2.5, 2.5, 1.0, 2.5, 2.5, 2.5, 2.5)]
    assert found == [None, None, None, None, None, 2, None]
    assert not any(Slowness(0.01).looks([0.001, 0.009]) for _ in range(9)), "milliseconds"
    assert all(Slowness().looks([1.0]) is None for _ in range(9))


def sick(source: Path, folder: Path, bad: set[int], steps: int = 30, **over: Any) -> Trainer:
    """Windows `bad` (step + shift) give a gradient that is no number."""
    folder.mkdir(exist_ok=True)
    trainer = Trainer.start(set_up(tiny(source, budget={"steps": steps}, train=over)), folder)
    clip = trainer.clip

    def clipped() -> torch.Tensor:
        if trainer.step + trainer.shift in bad:
            next(iter(trainer.network.parameters())).grad.fill_(torch.nan)  # type: ignore[union-attr]
        return clip()

    trainer.clip = clipped  # type: ignore[method-assign]
    return trainer


def test_no_number_stops_at_the_next_step_that_is_logged_or_saved(source: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="at step 8 of 30"):
        list(train(sick(source, tmp_path / "run", {6}), tmp_path / "run"))
    resumed = Trainer.start(set_up(tiny(source)), tmp_path / "run")
    assert resumed.step == 4, "what was saved is from before"


def test_no_number_skips_the_update_and_no_more(source: Path, tmp_path: Path) -> None:
    trainer = sick(source, tmp_path / "run", {6}, on_nan="skip")
    list(train(trainer, tmp_path / "run"))
    assert trainer.step == 30 and all(torch.isfinite(p).all() for p in trainer.network.parameters())
    assert [(e["kind"], e["step"]) for e in events(tmp_path / "run")] == [("nan", 7)]
    with pytest.raises(Diverged, match=f"no number {SKIPS} times in a row"):
        list(train(sick(source, tmp_path / "all", set(range(5, 30)), on_nan="skip"), tmp_path / "all"))


def test_rollback_goes_on_from_the_checkpoint_with_the_data_that_follow(source: Path, tmp_path: Path) -> None:
    """Trouble in window 6, checkpoint at step 4: steps 5, 6, ... then read windows 7, 8, ..."""
    trainer = sick(source, tmp_path / "run", {6}, on_nan="rollback")
    records = list(train(trainer, tmp_path / "run"))
    assert trainer.step == 30 and trainer.shift == 3
    assert [(e["kind"], e["step"]) for e in events(tmp_path / "run")] == [("nan", 4)]
    assert (
        [r.step for r in read_journal(tmp_path / "run" / "journal.jsonl")] == [r.step for r in records] == [10, 20, 30]
    )
    again = Trainer.start(set_up(tiny(source, train={"on_nan": "rollback"})), tmp_path / "run")
    assert (again.step, again.shift) == (30, 3), "the state remembers what was passed over"


def test_rollback_before_any_checkpoint_goes_to_the_start_and_gives_up_in_the_end(source: Path, tmp_path: Path) -> None:
    trainer = sick(source, tmp_path / "run", {1}, on_nan="rollback")
    list(train(trainer, tmp_path / "run"))
    assert trainer.step == 30 and trainer.shift == 2
    with pytest.raises(Diverged, match=f"after {ROLLBACKS} returns to step 0"):
        list(train(sick(source, tmp_path / "all", set(range(1, 99)), on_nan="rollback"), tmp_path / "all"))


def test_rolled_back_run_that_is_killed_continues_to_the_same_bits(source: Path, tmp_path: Path) -> None:
    whole = sick(source, tmp_path / "whole", {6}, on_nan="rollback")
    list(train(whole, tmp_path / "whole"))
    for record in train(sick(source, tmp_path / "broken", {6}, on_nan="rollback"), tmp_path / "broken"):
        if record.step == 20:
            break
    broken = sick(source, tmp_path / "broken", {6}, on_nan="rollback")
    list(train(broken, tmp_path / "broken"))
    assert all(torch.equal(a, b) for a, b in zip(whole.network.parameters(), broken.network.parameters(), strict=True))


def spiky(source: Path, folder: Path, **over: Any) -> Trainer:
    """Nothing is trained; from window 260 to 290 the loss is said to be ten times what it is said to be elsewhere."""
    trainer = sick(source, folder, set(), steps=330, save_every=50, **over)

    def high(step: int) -> torch.Tensor:
        return torch.tensor(20.0 if 260 <= step + trainer.shift < 290 else 2.0)

    trainer.descend = high  # type: ignore[method-assign]
    return trainer


def test_a_spike_is_recorded_or_stops_or_rolls_back(source: Path, tmp_path: Path) -> None:
    list(train(spiky(source, tmp_path / "record"), tmp_path / "record"))
    assert [(e["kind"], e["step"]) for e in events(tmp_path / "record")] == [("spike", 290)]
    with pytest.raises(Diverged, match="at step 290 of 330 the loss has been high"):
        list(train(spiky(source, tmp_path / "stop", on_spike="stop"), tmp_path / "stop"))
    trainer = spiky(source, tmp_path / "back", on_spike="rollback")
    list(train(trainer, tmp_path / "back"))
    assert [(e["kind"], e["step"]) for e in events(tmp_path / "back")] == [("spike", 250)]
    assert trainer.shift == 40 and len(read_journal(tmp_path / "back" / "journal.jsonl")) == 33


def events(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "journal.jsonl") if event["kind"] != "heartbeat"]


def test_a_run_shows_that_it_lives(source: Path, tmp_path: Path) -> None:
    list(train(sick(source, tmp_path / "run", set()), tmp_path / "run"))
    [beat] = [e for e in read_events(tmp_path / "run" / "journal.jsonl") if e["kind"] == "heartbeat"]
    assert beat["step"] == 10 and beat["left"] > 0 and beat["tokens_per_second"] > 0


def test_one_checkpoint_may_fail_and_two_in_a_row_stop(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, save = sick(source, tmp_path / "run", set()), Trainer.save

    def full(self: Trainer, folder: Path, name: str = "state.safetensors") -> None:
        if self.step in (8, 16, 20):
            raise UserError("no space is left here")
        save(self, folder, name)

    monkeypatch.setattr(Trainer, "save", full)
    with pytest.raises(UserError, match="2 checkpoints in a row could not be written: no space is left"):
        list(train(trainer, tmp_path / "run"))
    assert trainer.step == 20 and [e["step"] for e in events(tmp_path / "run")] == [8, 16]
    assert Trainer.start(set_up(tiny(source)), tmp_path / "run").step == 12


def test_a_run_without_any_checkpoint_stops_where_the_first_fails(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Trainer, folder: Path, name: str = "") -> None:
        raise UserError("no space is left here")

    monkeypatch.setattr(Trainer, "save", full)
    trainer = sick(source, tmp_path / "run", set())
    with pytest.raises(UserError, match=r"^no space is left here$"):
        list(train(trainer, tmp_path / "run"))
    assert trainer.step == 4 and not events(tmp_path / "run")


def test_data_that_go_away_are_named_and_the_state_is_saved(source: Path, tmp_path: Path) -> None:
    trainer = sick(source, tmp_path / "run", set())
    rows = trainer.setup.reader.samples.rows

    def vanished(index: Any) -> Any:
        if index[0] >= 17 * 4:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", "train_00001.bin")
        return rows(index)

    trainer.setup.reader.samples.rows = vanished  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"data of step 18 cannot be read: .*train_00001.bin"):
        list(train(trainer, tmp_path / "run"))
    assert Trainer.start(set_up(tiny(source)), tmp_path / "run").step == 17


def test_a_full_disk_makes_the_journal_wait(tmp_path: Path) -> None:
    """A line that finds no room, or half of it, is written when there is room."""
    journal, record = Journal(tmp_path / "journal.jsonl", 0), StepRecord(10, 1.0, 0.1, 1.0, 9, 9.0, 1.0)
    journal.write(record)
    file, given = journal.file, [7, None]

    class Full:
        fileno, truncate, close = file.fileno, file.truncate, file.close

        @staticmethod
        def write(data: bytes) -> int:
            room = given.pop(0) if given else len(data)
            if room is None:
                raise OSError(errno.ENOSPC, "disk full")
            return file.write(data[:room])

    journal.file = Full()  # type: ignore[assignment]
    for step in (20, 30):
        journal.write(StepRecord(**{**vars(record), "step": step}))
        assert [r.step for r in read_journal(journal.path)] == [10]
    journal.write(Event("spike", 31, "high"))
    journal.close()
    assert [r.step for r in read_journal(journal.path)] == [10, 20, 30]
    last = last_record(journal.path)
    assert last is not None and last.step == 30, "an event is no step"


def test_history_is_kept_when_steps_are_taken_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", 0)
    for step in (10, 20, 30):
        journal.write(StepRecord(step, 1.0, 0.1, 1.0, 9, 9.0, 1.0))
    journal.write(Event("save failed", 30, "no space"))
    journal.close()
    Journal(tmp_path / "journal.jsonl", 20).close()
    assert [r.step for r in read_journal(tmp_path / "journal.jsonl")] == [10, 20]
    assert [e["kind"] for e in read_events(tmp_path / "journal.jsonl")] == ["save failed"]
