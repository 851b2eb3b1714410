"""Checkpoints of several ranks: whole or absent, read by any number of ranks, the one before a damaged one is used."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import redraft
from redraft.cli import main
from redraft.config import RunConfig, dump_toml
from redraft.errors import UserError
from redraft.files import write_text
from redraft.runs.run import train
from redraft.training.distributed.ranks import Ranks
from redraft.training.distributed.sharded_checkpoint import candidates, consolidate, verify
from redraft.training.journal import read_events
from redraft.training.setup import set_up
from redraft.training.trainer import Trainer
from tests.small_runs import corpus, tiny
from tests.training.spawned import losses, on_ranks


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


def config(source: Path, **train: Any) -> RunConfig:
    options = {"precision": "float64", "parallel": {"kind": "fsdp"}, "ema": 0.9, "save_every": 5, **train}
    return tiny(source, family="duo", network={"depth": 1}, budget={"steps": 25}, train=options)


def until(setup: Any, folder: Path, stop: int) -> list[float]:
    """Train to the first logged step from `stop` on, and leave in order; the losses logged."""
    found = []
    steps = train(Trainer.start(setup, folder), folder)
    for record in steps:
        found.append(record.loss)
        if record.step >= stop:
            break
    steps.close()
    return found


def begun(ranks: Ranks, setting: RunConfig, folder: Path) -> dict[str, Any]:
    """What two ranks do: a run that is left at step 20, a disk that is full for them, data that rank 1 cannot read."""
    folder.mkdir(exist_ok=True) if ranks.first else None
    for name in ("left", "once", "twice", "lost"):
        (folder / name).mkdir() if ranks.first else None
    ranks.agree()
    found: dict[str, Any] = {"left": until(set_up(setting), folder / "left", 20)}
    for name, fails in (("once", 1), ("twice", 9)):
        found[name] = _said(lambda name=name: until(set_up(setting), folder / name, 20), ranks, fails)
    found["lost"] = _said(lambda: until(_unreadable(set_up(setting), ranks), folder / "lost", 20), ranks, 0)
    return found


def _said(do: Any, ranks: Ranks, fails: int) -> Any:
    """What it returned, or its error; after its first, `fails` writes of rank 1 find no space."""
    import torch.distributed.checkpoint as dcp

    write, done = dcp.FileSystemWriter.write_data, list[int]()

    def refusing(*arguments: Any) -> Any:
        done.append(1)
        if ranks.rank == 1 and 1 < len(done) <= 1 + fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    dcp.FileSystemWriter.write_data = refusing  # type: ignore[method-assign]
    try:
        return do()
    except UserError as error:
        return str(error)
    finally:
        dcp.FileSystemWriter.write_data = write  # type: ignore[method-assign]


def _unreadable(setup: Any, ranks: Ranks) -> Any:
    """Rank 1's data go away before step 18."""
    samples = setup.reader.samples
    rows = samples.rows

    def vanished(index: Any) -> Any:
        if ranks.rank == 1 and index[0] >= 17 * 4:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", "train_00001.bin")
        return rows(index)

    samples.rows = vanished
    return setup


@pytest.fixture(scope="module")
def two(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], list[float]]:
    """What two ranks left and said, and the losses of one process."""
    folder = tmp_path_factory.mktemp("two")
    found = on_ranks(2, begun, config(source), folder)
    return folder, found, losses(Ranks(), [config(source)], folder / "alone")[0]


def copied(folder: Path, into: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, into))


def test_newest_are_kept_and_all_are_whole(two: Any) -> None:
    paths = candidates(two[0] / "left")
    assert [path.name for path in paths] == ["step-00000020", "step-00000015"]
    for path in paths:
        verify(path)
    assert not list((two[0] / "left" / "checkpoints").glob("*.tmp"))


def test_continues_on_another_number_of_ranks(two: Any, source: Path, tmp_path: Path) -> None:
    """Begun on two, ended on one and on three: the losses of the run that was never interrupted."""
    alone = copied(two[0] / "left", tmp_path / "alone")
    trainer = Trainer.start(set_up(config(source)), alone)
    assert trainer.step == 20
    found = [step.loss.item() for step in trainer.run()]
    np.testing.assert_allclose(found, two[2][20:], rtol=1e-9)
    copied(two[0] / "left", tmp_path / "0")
    three = on_ranks(3, losses, [config(source)], tmp_path)
    np.testing.assert_allclose(three[0][0], two[2][20:], rtol=1e-9)


def test_run_begun_alone_continues_on_several(source: Path, two: Any, tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    until(set_up(config(source)), tmp_path / "0", 20)
    assert [path.name for path in candidates(tmp_path / "0")] == ["state.safetensors"]
    [found, _] = on_ranks(2, losses, [config(source)], tmp_path)
    np.testing.assert_allclose(found[0], two[2][20:], rtol=1e-9)


@pytest.mark.parametrize("damage", ["cut", "altered", "gone"])
def test_damaged_newest_is_named_and_the_one_before_is_used(
    damage: str, two: Any, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(two[0] / "left", tmp_path / "run")
    file = next((folder / "checkpoints" / "step-00000020").glob("__1_*"))
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    trainer = Trainer.start(set_up(config(source)), folder)
    assert trainer.step == 15
    train(trainer, folder).__next__()
    assert "is missing or damaged" in capsys.readouterr().err
    assert [event["kind"] for event in read_events(folder / "journal.jsonl")][-2] == "damage"


def test_nothing_whole_is_one_line(two: Any, source: Path, tmp_path: Path) -> None:
    folder = copied(two[0] / "left", tmp_path / "run")
    for file in folder.glob("checkpoints/*/__0_*"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="is missing or damaged"):
        Trainer.start(set_up(config(source)), folder)


def test_what_a_killed_writer_left_is_not_read(two: Any, source: Path, tmp_path: Path) -> None:
    folder = copied(two[0] / "left", tmp_path / "run")
    (folder / "checkpoints" / "step-00000020").rename(folder / "checkpoints" / "step-00000030.tmp")
    assert Trainer.start(set_up(config(source)), folder).step == 15


def test_weights_of_a_run_that_trains_come_out_whole(
    two: Any, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The moving average, as the run that continued alone holds it; and a model of it, for other programs."""
    left = two[0] / "left"
    step, weights = consolidate(left)
    trainer = Trainer.start(set_up(config(source)), left)
    assert step == trainer.step == 20
    run = copied(left, tmp_path / "run")
    write_text(run / "config.toml", dump_toml(config(source)))
    main(["export", str(run), "--to", "native", "--into", str(tmp_path / "model")])
    assert "20 steps" in (tmp_path / "model" / "README.md").read_text()
    model = redraft.load(tmp_path / "model", "cpu")
    given = dict(model.network.named_parameters())
    for (name, _), mean in zip(trainer.network.named_parameters(), trainer.average, strict=True):
        assert np.array_equal(weights[name].numpy(), mean.numpy())
        assert np.array_equal(given[name].detach().numpy(), mean.float().numpy())
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["eval", str(run)])
    assert "`redraft export` makes a model of one that still trains" in capsys.readouterr().err


def test_a_full_disk_costs_one_checkpoint_and_the_second_in_a_row_stops(two: Any) -> None:
    folder, found, alone = two
    np.testing.assert_allclose(found[0]["once"], alone[9:20:10], rtol=1e-9)
    [event] = [e for e in read_events(folder / "once" / "journal.jsonl") if e["kind"] == "save failed"]
    assert "no space is left" in event["text"] and "the one before is kept" in event["text"]
    assert found[0]["twice"] == found[1]["twice"]
    assert found[0]["twice"].startswith("2 checkpoints in a row could not be written: no space is left in")


def test_lost_data_are_named_on_every_rank_and_the_state_is_saved(two: Any) -> None:
    folder, found, _ = two
    assert found[0]["lost"] == found[1]["lost"]
    assert found[0]["lost"].startswith("rank 1: the data of step 18 cannot be read: ")
    assert "train_00001.bin" in found[0]["lost"]
    assert candidates(folder / "lost")[0].name == "step-00000017"
