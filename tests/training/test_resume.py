"""Laws 9 and 10: same seed, same loss, at any accumulation; killed anywhere, the continued run equals the unbroken one."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from redraft.config import RunConfig, dump_toml
from redraft.errors import UserError
from redraft.network.device import deterministic
from redraft.registry import FAMILIES
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out, read_record
from redraft.runs.snapshot import snapshot
from redraft.training.journal import read_journal
from redraft.training.trainer import Trainer
from tests.processes import ended, redraft
from tests.rounding import CLOSE
from tests.small_runs import corpus, tiny

TELLING = ("timing", "machine", "versions", "git", "name")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


@pytest.fixture(scope="session")
def teacher(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "duo"
    finish(tiny(source, family="duo"), folder)
    return folder


def start_of(family: Any, teacher: Path) -> dict[str, Any]:
    return {"init_from": str(teacher)} if family is TAUGHT else {}


def finish(config: RunConfig, folder: Path) -> dict[str, Any]:
    for _ in carry_out(open_run(config, folder), folder):
        pass
    return read_record(folder)


def result(folder: Path) -> tuple[bytes, dict[str, Any], list[tuple[int, float, float]]]:
    """Everything of a run that must not depend on when and where it was interrupted."""
    record = {k: v for k, v in read_record(folder).items() if k not in TELLING}
    steps = [(r.step, r.loss, r.grad_norm) for r in read_journal(folder / "journal.jsonl")]
    return (folder / "model.safetensors").read_bytes(), record, steps


STEPS = 18
TAUGHT = {"name": "duo", "objective": "distillation", "rounds": 4}  # renews its teacher at 0, 5, 9 and 14
KINDS = [*FAMILIES, TAUGHT]
# Each family between two checkpoints; one, and the one with a teacher, also before the first, on one, and near the end.
STOPS = [(kind, 6) for kind in KINDS] + [(kind, stop) for kind in ("mdlm", TAUGHT) for stop in (1, 4, STEPS - 1)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[RunConfig], Path]:
    """The folder of a run that nothing interrupted; each is trained once."""
    known: dict[str, Path] = {}

    def folder_of(config: RunConfig) -> Path:
        name = config.model_dump_json()
        if name not in known:
            known[name] = tmp_path_factory.mktemp("whole") / "run"
            finish(config, known[name])
        return known[name]

    return folder_of


@pytest.mark.parametrize(("family", "stop"), STOPS, ids=str)
def test_abandoned_run_continues_to_the_same_bits(
    family: Any, stop: int, source: Path, teacher: Path, unbroken: Callable[[RunConfig], Path], tmp_path: Path
) -> None:
    """Stopped after any step, between checkpoints or on one: weights and record are those of the unbroken run."""
    train = {"ema": 0.9, **start_of(family, teacher)}
    config = tiny(source, family=family, budget={"steps": STEPS}, train=train)
    setup = open_run(config, tmp_path / "broken")
    given = dict(load_file(teacher / "model.safetensors")) if family is TAUGHT else None
    trainer = Trainer.start(setup, tmp_path / "broken", given)
    for at in trainer.run():
        if at.step % setup.config.train.save_every == 0:
            trainer.save(tmp_path / "broken")
        if at.step == stop:
            break
    finish(config, tmp_path / "broken")
    # This loop kept no journal, so what it trained before the stop is not in one; the killed command's below is.
    assert result(tmp_path / "broken")[:2] == result(unbroken(config))[:2]


@pytest.mark.parametrize("trial", range(3))
def test_run_killed_at_a_random_moment_continues_to_the_same_bits(
    trial: int, source: Path, unbroken: Callable[[RunConfig], Path], tmp_path: Path
) -> None:
    """SIGKILL of the command itself, as often as it takes, at moments that are drawn."""
    config = tiny(source, budget={"steps": 400}, train={"save_every": 25})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(dump_toml(config))
    command = ["train", recipe, "--into", tmp_path / "broken", "--json"]
    rng, kills = random.Random(trial), 0
    while not (tmp_path / "broken" / "record.json").exists():
        process = redraft(*command)
        if kills < 2:
            _wait_for(tmp_path / "broken" / "journal.jsonl", process)
            time.sleep(rng.uniform(0, 0.8))
            process.kill()
            kills += 1
        ended(process)
    assert result(tmp_path / "broken") == result(unbroken(config))
    left = [p.name for p in (tmp_path / "broken").iterdir() if ".tmp-" in p.name]
    assert not left or kills  # a killed writer may leave its aside file; it never has the real name


def _wait_for(path: Path, process: ForkServerProcess) -> None:
    """Until training has begun: killing the imports would prove nothing."""
    while process.is_alive() and not path.exists():
        time.sleep(0.01)


@pytest.mark.parametrize("family", KINDS, ids=str)
def test_loss_does_not_depend_on_accumulation(family: Any, source: Path, teacher: Path, tmp_path: Path) -> None:
    """Law 9, the part that one process shows: 1, 2 and 4 micro-batches see the same corruption; only sums are reordered. In
    float64: in float32 an optimiser step of a gradient near nothing is its rounding."""
    losses = []
    for parts in (1, 2, 4):
        config = tiny(
            source,
            family=family,
            budget={"steps": 6},
            train={"accumulate": parts, "precision": "float64", **start_of(family, teacher)},
        )
        trainer = Trainer.start(open_run(config, tmp_path / str(parts)), tmp_path / str(parts))
        losses.append(torch.stack([step.loss for step in trainer.run()]))
    assert torch.allclose(losses[0], losses[1], **CLOSE) and torch.allclose(losses[0], losses[2], **CLOSE)


def test_record_says_everything(source: Path, tmp_path: Path) -> None:
    record = finish(tiny(source), tmp_path / "run")
    assert record["tokens"] == record["steps"] * record["batch"] * record["length"]
    assert record["params"] == sum(record["parameters"].values()) - record["parameters"]["embedding"]
    assert set(record["flops_by_convention"]) == {"6ND", "blocks+head", "full"}
    assert record["flops"] == record["flops_by_convention"][record["convention"]]
    for key in ("loss", "loss_se", "bits_per_byte", "ppl", "seed", "options", "versions", "machine", "git"):
        assert key in record
    assert len(record["data"]["sha256"]) == 64
    assert json.loads((tmp_path / "run" / "record.json").read_text()) == record


def test_folder_of_another_run_is_refused(source: Path, tmp_path: Path) -> None:
    open_run(tiny(source), tmp_path / "run")
    with pytest.raises(UserError, match=r"holds another run \(its seed is 0, not 1\)"):
        open_run(tiny(source, seed=1), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no redraft run"):
        open_run(tiny(source), tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine" and len(os.listdir(tmp_path / "other")) == 1


def test_state_of_a_network_with_other_heads_is_refused(source: Path, tmp_path: Path) -> None:
    """Its tensors have the same shapes: width 24 had heads of width 12, and a version to come may solve it otherwise."""
    blank = dict.fromkeys(("depth", "heads", "width"))
    changed, kept = (tiny(source, network={**blank, "size": size}) for size in ("14k", "6k"))
    for name, config in (("changed", changed), ("kept", kept)):
        trainer = Trainer.start(open_run(config, tmp_path / name), tmp_path / name)
        next(trainer.run())
        trainer.save(tmp_path / name)
        open_run(config, tmp_path / name)
        (tmp_path / name / "network.json").rename(tmp_path / f"{name}.json")
    told = r"another network than size 14k has now \(width 24, 2 layers, 3 heads\): end it with the version that"
    for do in (lambda: open_run(changed, tmp_path / "changed"), lambda: snapshot(tmp_path / "changed")):
        with pytest.raises(UserError, match=told):
            do()
    open_run(kept, tmp_path / "kept")
    stored = json.loads((tmp_path / "kept.json").read_text())
    (tmp_path / "kept" / "network.json").write_text(json.dumps(stored | {"heads": 2}))
    with pytest.raises(UserError, match="another network than size 6k"):
        open_run(kept, tmp_path / "kept")


def test_what_was_left_to_the_machine_is_found_again(source: Path, tmp_path: Path) -> None:
    config = tiny(source, train={"precision": "auto", "device": "auto", "compile": "auto"})
    assert open_run(config, tmp_path / "run").config == open_run(config, tmp_path / "run").config


def test_truncated_state_is_refused_in_one_line(source: Path, tmp_path: Path) -> None:
    config = tiny(source)
    setup = open_run(config, tmp_path / "run")
    trainer = Trainer.start(setup, tmp_path / "run")
    next(trainer.run())
    trainer.save(tmp_path / "run")
    state = tmp_path / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a whole checkpoint"):
        Trainer.start(setup, tmp_path / "run")


def test_deterministic_kernels_are_asked_for_during_steps_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And on a CPU, whose sums have an order, they change no bit."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    told = lambda: (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        "CUBLAS_WORKSPACE_CONFIG" in os.environ,
    )
    descend, during = Trainer.descend, set[tuple[bool, ...]]()

    def spied(self: Trainer, step: int) -> torch.Tensor:
        during.add(told())
        return descend(self, step)

    monkeypatch.setattr(Trainer, "descend", spied)
    for wanted in (False, True):
        config, folder = tiny(source, train={"deterministic": wanted}), tmp_path / str(wanted)
        during.clear()
        for _ in carry_out(open_run(config, folder), folder):
            assert told() == (False, False, False)
        assert during == {(wanted,) * 3} and told() == (False, False, False)
    state = [load_file(tmp_path / str(wanted) / "model.safetensors") for wanted in (False, True)]
    assert all(torch.equal(state[0][name], state[1][name]) for name in state[0])


def test_deterministic_kernels_are_not_asked_for_after_an_error() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(ValueError, match="mine"), deterministic():
            raise ValueError("mine")
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_training_learns(source: Path, tmp_path: Path) -> None:
    """AR on words of a small vocabulary: far below the log V where it starts."""
    record = finish(tiny(source, family="ar", budget={"steps": 300}, train={"lr": 1e-2}), tmp_path / "run")
    first = read_journal(tmp_path / "run" / "journal.jsonl")[0].loss
    assert record["loss"] < 2.2 < first
