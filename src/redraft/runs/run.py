"""One run, from configuration to a folder with weights and a record, resumed wherever it was killed.

config.toml          the resolved configuration
network.json         the shape that its network has
start.json           which weights training started from, if it was given any
journal.jsonl        one typed record a line
state.safetensors    resumable state, while it trains
config.json, model.safetensors, tokenizer    the model, when training ended
record.json          the result; a folder that has one is done
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.errors import Diverged
from redraft.evaluation.likelihood.cost import cost
from redraft.evaluation.likelihood.estimators import own_bound
from redraft.evaluation.likelihood.nelbo import bound
from redraft.files import read_json, write_json
from redraft.hub.folder import ModelConfig, save_model
from redraft.runs.claim import START, initial_weights
from redraft.runs.record import RECORD, Timing, run_record
from redraft.training.checkpoint import STATE
from redraft.training.distributed.ranks import Preempted
from redraft.training.distributed.sharded_checkpoint import candidates
from redraft.training.health import LostData
from redraft.training.journal import StepRecord
from redraft.training.monitor import Monitor
from redraft.training.setup import Setup, held_out
from redraft.training.trainer import Trainer


@dataclass(frozen=True)
class Branch:
    """That a run goes on from a longer run's state after `at` steps, in the file `fork`; it trains the steps that are left."""

    trunk: str
    at: int
    fork: Path


def carry_out(
    setup: Setup,
    folder: Path,
    name: str = "",
    arm: str = "",
    branch: Branch | None = None,
    forks: Mapping[int, Sequence[Path]] | None = None,
    scoring: Callable[[int, int], object] | None = None,
) -> Iterator[StepRecord]:
    """Train (or go on training), score, save: yields what training logs. A finished run yields nothing.

    `forks`: files for its state after so many steps, from which branches go on. `scoring`: hears how many of all passes of the
    last evaluation are done. Closed early, the state is saved.
    """
    if (folder / RECORD).exists():
        return
    config, began = setup.config, time.perf_counter()
    fork = branch.fork if branch else None
    fresh = not candidates(folder) and not (fork and fork.exists())
    trainer = Trainer.start(setup, folder, initial_weights(setup) if fresh else None, fork)
    started = trainer.step
    yield from train(trainer, folder, forks)
    timing = Timing(time.perf_counter() - began, setup.budget.steps - started)
    network = trainer.final_weights().eval()
    windows = held_out(setup.corpus, config.data, setup.tokenizer.eos, config.evaluate.rows)
    draws, batch = config.evaluate.draws, config.evaluate.batch
    passes = cost(windows, own_bound(setup.family), setup.family, draws, batch).passes
    told = None if scoring is None else lambda done: scoring(done, passes)
    result = bound(network, setup.family, windows, draws, batch, told=told)
    if not math.isfinite(result.nats):
        raise Diverged(f"the trained network gives the validation rows {result.nats} nats per token: lower train.lr")
    start = read_json(folder / START) if config.train.init_from is not None else None
    record = run_record(name or folder.name, arm or config.family.name, setup, result, timing, start)
    record["branch"] = {"trunk": branch.trunk, "at": branch.at} if branch else None
    save_model(folder, _model_config(setup, record), network, setup.tokenizer)
    write_json(folder / RECORD, record)
    (folder / STATE).unlink(missing_ok=True)


def read_record(folder: Path) -> dict[str, Any]:
    return read_json(folder / RECORD)


def train(trainer: Trainer, folder: Path, forks: Mapping[int, Sequence[Path]] | None = None) -> Iterator[StepRecord]:
    """Run to the end with a journal and checkpoints in `folder`; yields what it logs.

    `forks`: files that take the state after so many steps, for other runs to go on from. Closed early, or where data are lost,
    it saves its state. `UserError` where the loss is no number any more, and by the other rules of health.py.
    """
    with trainer.ranks.handling_signals():
        yield from _watched(trainer, Monitor(trainer, folder), forks or {})


def _watched(trainer: Trainer, monitor: Monitor, forks: Mapping[int, Sequence[Path]]) -> Iterator[StepRecord]:
    try:
        for at in trainer.run():
            record = monitor.after(at)
            if at.step == trainer.step:  # not rolled back
                for fork in forks.get(at.step, ()):
                    trainer.save(fork.parent, fork.name)
                monitor.save_if_due()
            if record:
                yield record
        monitor.wait_for_save()
        if trainer.ranks.sum([bool(trainer.ranks.asked)])[0]:
            raise Preempted
    except (GeneratorExit, Preempted, LostData) as left:
        monitor.save()
        monitor.wait_for_save()
        if isinstance(left, Preempted):
            monitor.log_event("left", f"asked to leave after step {trainer.step}, which is saved")
        raise
    finally:
        monitor.close()


def _model_config(setup: Setup, record: dict[str, Any]) -> ModelConfig:
    family = setup.config.family
    # The record's account of this execution (times, machine) stays out: the model's files depend on the run alone.
    own = ("device", "device_name", "machine", "timing", "versions", "git")
    kept = {k: v for k, v in record.items() if k not in own}
    fingerprint = setup.tokenizer.fingerprint
    return ModelConfig(family.name, family.options, setup.budget.shape, setup.config.data.length, fingerprint, kept)
