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
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft.config import RunConfig, dump_toml, read_toml, validated
from redraft.display import quantity
from redraft.errors import Diverged, UserError
from redraft.evaluation.likelihood.cost import cost
from redraft.evaluation.likelihood.estimators import own_bound
from redraft.evaluation.likelihood.nelbo import bound
from redraft.evaluation.provenance import start_summary
from redraft.runs.record import RECORD, Timing, run_record
from redraft.files import make_folder, read_json, write_json, write_text
from redraft.hub.folder import ModelConfig, load_model, read_config, save_model
from redraft.network.sizes import DEFAULT, LADDER, Shape, head_width
from redraft.text.shards.prepare import Progress
from redraft.training.checkpoint import STATE
from redraft.training.journal import StepRecord
from redraft.training.loop import train
from redraft.training.setup import Setup, held_out, set_up
from redraft.training.distributed.sharded import candidates
from redraft.training.trainer import Trainer

CONFIG, START, NETWORK = "config.toml", "start.json", "network.json"


def open_run(config: RunConfig, folder: Path, progress: Progress | None = None) -> Setup:
    """Claim `folder` for this run. `UserError` where it holds anything else, or the run cannot be set up."""
    stored = _stored(config, folder)
    setup = set_up(stored or config, progress)
    if stored is None:
        _check_start(setup)
        _check_space(setup, folder)
        make_folder(folder)
        if setup.config.train.init_from is not None:
            write_json(folder / START, start_summary(setup.config.train.init_from))
        write_json(folder / NETWORK, asdict(setup.budget.shape))
        write_text(folder / CONFIG, dump_toml(setup.config))
    else:
        check_network(folder, setup.config, setup.budget.shape)
    return setup


def check_network(folder: Path, config: RunConfig, shape: Shape) -> None:
    """`UserError` where the state in `folder` is of a network with other heads: tensors of the same shapes would not tell.

    Which heads a size has may change from one version to the next. Folders without `network.json` are of versions that gave
    solved sizes heads of any even width, where now a part of the usual width divides the network's.
    """
    network, path = config.network, folder / NETWORK
    if not candidates(folder):
        return
    solved = network.depth is None and network.size not in LADDER
    other = read_json(path) != asdict(shape) if path.exists() else solved and shape.width % head_width(shape.width)
    if other:
        raise UserError(
            f"{folder} was begun with another network than size {network.size or DEFAULT} has now (width {shape.width}, "
            f"{shape.depth} layers, {shape.heads} heads): end it with the version that began it, or give another folder"
        )


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
    trainer = Trainer.start(setup, folder, _given(setup) if fresh else None, fork)
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


def _stored(config: RunConfig, folder: Path) -> RunConfig | None:
    """The resolved configuration that `folder` already holds for this very run; None for a new or empty folder."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder for the run")
    if not (folder / CONFIG).exists():
        if any(not item.name.startswith(".") for item in folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no redraft run: give a new or empty folder")
        return None
    stored = validated(RunConfig, read_toml(folder / CONFIG))
    chosen = {
        k: getattr(stored.train, k) for k in ("precision", "device", "compile") if getattr(config.train, k) == "auto"
    }
    asked = config.model_copy(update={"train": config.train.model_copy(update=chosen)})
    if config.data.format == "auto":
        asked = asked.model_copy(update={"data": config.data.model_copy(update={"format": stored.data.format})})
    if asked != stored:
        raise UserError(f"{folder} holds another run ({_difference(asked, stored)}): give another folder, or remove it")
    return stored


def _check_start(setup: Setup) -> None:
    """`UserError` where the weights to start from are missing or damaged, of another shape, or of another vocabulary."""
    if setup.config.train.init_from is None:
        if setup.config.train.lora is not None:
            raise UserError("train.lora adapts a trained model: give it by --from FOLDER")
        if setup.teachers:
            raise UserError("family.objective distillation learns from a trained model: give it by --from FOLDER")
        return
    start = read_config(Path(setup.config.train.init_from))
    if setup.teachers and start.family != setup.config.family.name:
        raise UserError(
            f"family.objective distillation needs a teacher of family {setup.config.family.name!r}: "
            f"{setup.config.train.init_from} is of family {start.family!r}"
        )
    if start.tokenizer != setup.tokenizer.fingerprint:
        raise UserError(
            f"{setup.config.train.init_from} speaks another vocabulary than data.tokenizer {setup.tokenizer.name}"
        )
    if start.shape != setup.budget.shape:
        key = next(k for k, v in asdict(start.shape).items() if v != getattr(setup.budget.shape, k))
        theirs, ours = getattr(start.shape, key), getattr(setup.budget.shape, key)
        raise UserError(f"{setup.config.train.init_from} is another network: its {key} is {theirs}, this run's {ours}")
    _given(setup)


def _check_space(setup: Setup, folder: Path) -> None:
    """`UserError` where the disk has no room for the weights and for two states (the old one goes when the new one is whole):
    of float32 weights, AdamW's two moments, and the moving average and the teacher where there are."""
    kept = 3 + bool(setup.config.train.ema) + bool(setup.teachers)
    needed = 4 * sum(setup.budget.parameters.values()) * (1 + 2 * kept)
    there = next(above for above in (folder, *folder.absolute().parents) if above.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"the run needs about {quantity(needed, 'B')} in {folder} for its weights and states, and "
            f"{quantity(free, 'B')} are free: free some, or choose another folder"
        )


def _given(setup: Setup) -> dict[str, Tensor] | None:
    if setup.config.train.init_from is None:
        return None
    return dict(load_model(Path(setup.config.train.init_from), torch.device("cpu"))[1].named_parameters())


def _difference(asked: RunConfig, stored: RunConfig) -> str:
    """The first setting that differs, for a message."""
    ours, theirs = _flat(asked.model_dump()), _flat(stored.model_dump())
    key = next(k for k in sorted(ours.keys() | theirs.keys()) if ours.get(k) != theirs.get(k))
    return f"its {key} is {theirs.get(key)!r}, not {ours.get(key)!r}"


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in table.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def _model_config(setup: Setup, record: dict[str, Any]) -> ModelConfig:
    family = setup.config.family
    # The record's account of this execution (times, machine) stays out: the model's files depend on the run alone.
    own = ("device", "device_name", "machine", "timing", "versions", "git")
    kept = {k: v for k, v in record.items() if k not in own}
    fingerprint = setup.tokenizer.fingerprint
    return ModelConfig(family.name, family.options, setup.budget.shape, setup.config.data.length, fingerprint, kept)
