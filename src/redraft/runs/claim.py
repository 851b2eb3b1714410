"""A folder claimed for a run: new, or holding this very run; everything it needs is checked before the first step."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from redraft.config import RunConfig, dump_toml, flat, read_toml, validated
from redraft.display import quantity
from redraft.errors import UserError
from redraft.evaluation.provenance import start_summary
from redraft.files import make_folder, read_json, write_json, write_text
from redraft.hub.folder import load_model, read_config
from redraft.network.sizes import DEFAULT, LADDER, Shape, head_width
from redraft.text.shards.prepare import Progress
from redraft.training.adapt import adapted
from redraft.training.distributed.sharded_checkpoint import candidates
from redraft.training.setup import Setup, set_up

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
    other = Shape(**read_json(path)) != shape if path.exists() else solved and shape.width % head_width(shape.width)
    if other:
        raise UserError(
            f"{folder} was begun with another network than size {network.size or DEFAULT} has now (width {shape.width}, "
            f"{shape.depth} layers, {shape.heads} heads): end it with the version that began it, or give another folder"
        )


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
        if setup.config.train.adapt is not None:
            raise UserError("train.adapt adapts a trained AR model: give it by --from FOLDER")
        if setup.config.train.lora is not None:
            raise UserError("train.lora adapts a trained model: give it by --from FOLDER")
        if setup.teachers:
            raise UserError("family.objective distillation learns from a trained model: give it by --from FOLDER")
        return
    start = read_config(Path(setup.config.train.init_from))
    if setup.config.train.adapt is not None and (start.family != "ar" or setup.config.family.name == "ar"):
        raise UserError(
            f"train.adapt makes an AR model one of another family: here {start.family} becomes {setup.config.family.name}"
        )
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
    initial_weights(setup)


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


def initial_weights(setup: Setup) -> dict[str, Tensor] | None:
    if setup.config.train.init_from is None:
        return None
    weights: dict[str, Tensor] = dict(
        load_model(Path(setup.config.train.init_from), torch.device("cpu"))[1].named_parameters()
    )
    adapt = setup.config.train.adapt
    return weights if adapt is None or setup.family.spare != "mask" else adapted(weights, adapt)


def _difference(asked: RunConfig, stored: RunConfig) -> str:
    """The first setting that differs, for a message."""
    ours, theirs = flat(asked.model_dump()), flat(stored.model_dump())
    key = next(k for k in sorted(ours.keys() | theirs.keys()) if ours.get(k) != theirs.get(k))
    return f"its {key} is {theirs.get(key)!r}, not {ours.get(key)!r}"
