"""A model from a run that is still training: its newest whole checkpoint, of any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redraft.config import RunConfig, read_toml, validated
from redraft.families.base import build
from redraft.hub import folder as hub
from redraft.hub.model import Model
from redraft.network.init import initialised
from redraft.planning.budget import Budget, plan_run
from redraft.runs.claim import CONFIG, check_network
from redraft.text.shards.mixture import phases_of
from redraft.text.tokenizers.tokenizer import load_tokenizer
from redraft.training import lora
from redraft.training.distributed.sharded_checkpoint import consolidate


def still_trains(folder: Path) -> bool:
    """Whether a folder is that of a run which has not come to its end."""
    return (folder / CONFIG).exists() and not (folder / hub.CONFIG).exists()


def snapshot(folder: Path) -> Model:
    """The model as it stood then: the moving average where there is one, adapters merged, float32. Its record has no loss.

    `UserError` where there is no whole checkpoint, where its size has another network now, or where the tokenizer is not where
    the run found it.
    """
    config = validated(RunConfig, read_toml(folder / CONFIG))
    tokenizer = load_tokenizer(config.data.tokenizer)
    step, weights = consolidate(folder)
    budget = plan_run(config, tokenizer.size)
    check_network(folder, config, budget.shape)
    network = initialised(budget.shape, config.seed)
    if config.train.lora is not None:
        lora.adapt(network, config)
    network.load_state_dict(weights)
    if config.train.lora is not None:
        lora.merge(network)
    family = build(config.family.name, config.family.options, tokenizer.size)
    return Model(family, network.eval(), tokenizer, config.data.length, _record(folder.name, config, budget, step))


def _record(name: str, config: RunConfig, budget: Budget, step: int) -> dict[str, Any]:
    """What is known of it: a share of what the whole run is planned to be."""
    sources = dict.fromkeys(one.source for phase in phases_of(config.data) for one in phase.mixture)
    return {
        "name": name,
        "family": config.family.name,
        "options": config.family.options,
        "seed": config.seed,
        "steps": step,
        "steps_planned": budget.steps,
        "batch": config.train.batch,
        "tokens": step * budget.tokens_per_step,
        "flops": budget.flops[budget.convention] * step / budget.steps,
        "convention": budget.convention,
        "data": {"source": " + ".join(sources), "validation": config.data.validation},
    }
