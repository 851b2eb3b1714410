"""Assembles everything a run needs from its configuration: data, tokenizer, family, budget, device."""

from __future__ import annotations

import os
from dataclasses import dataclass

from redraft.accelerator import accelerated
from redraft.config import DataConfig, RunConfig, validated
from redraft.display import quantity
from redraft.errors import UserError
from redraft.families.base import Family, build
from redraft.network.device import pick_device
from redraft.planning.budget import Budget, plan_run
from redraft.registry import FAMILIES
from redraft.text.examples.examples import PromptCorpus, Recipe, Shuffled, prepare_prompts
from redraft.text.examples.prompts import detected
from redraft.text.shards.mixture import Mixed, held_out_counts, held_out_rows, prepare_text, samples_of
from redraft.text.shards.packing import Blocks, Rows
from redraft.text.shards.prepare import Progress
from redraft.text.shards.shards import Corpus
from redraft.text.tokenizers.tokenizer import Tokenizer, load_tokenizer
from redraft.training import lora
from redraft.training.distributed.ranks import here
from redraft.training.loader import Reader
from redraft.training.precision import pick_precision


@dataclass(frozen=True)
class Setup:
    """A run ready to go, no weights yet. `config` is resolved: its device and precision are named. `validation_rows`: how many
    will be scored when training ends."""

    config: RunConfig
    tokenizer: Tokenizer
    corpus: Corpus | PromptCorpus
    family: Family
    budget: Budget
    reader: Reader
    validation_rows: int

    @property
    def teachers(self) -> int:
        """How often training renews a teacher."""
        return FAMILIES[self.config.family.name].teachers(self.config.family.options)


def set_up(config: RunConfig, progress: Progress | None = None, corpus: Corpus | None = None) -> Setup:
    """Tokenise (or find tokenised) the data, build the family, plan the budget. Raises `UserError` on anything amiss.
    `corpus`: the text, where it is at hand."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    family = build(config.family.name, config.family.options, tokenizer.size)
    shape = plan_run(config, tokenizer.size).shape  # what is amiss with sizes and budget is known before text is read
    if config.train.lora is not None:
        lora.check(config.train.lora, shape.block)
    device = pick_device(config.train.device)
    _check_memory(plan_run(config, tokenizer.size), config, device.type)
    data = resolved(config.data)
    precision = pick_precision(config.train.precision, shape, device)
    fused = accelerated(device) if config.train.compile == "auto" else config.train.compile
    train = config.train.model_copy(update={"precision": precision, "device": str(device), "compile": fused})
    config = config.model_copy(update={"train": train, "data": data})
    there = prepared(data, tokenizer, progress) if corpus is None else corpus
    samples: Blocks | Mixed | Shuffled
    if isinstance(there, PromptCorpus):
        samples = Shuffled(there.split("train"), config.seed)
        budget = plan_run(config, tokenizer.size, float(samples.examples.lengths.mean()), samples.tokens_in)
    else:
        budget = plan_run(config, tokenizer.size)
        samples = samples_of(there, data, tokenizer.eos, config.seed, budget.steps * config.train.batch)
    reader = Reader(samples, data, train.batch, config.seed, tokenizer.size, family.begins)
    return Setup(config, tokenizer, there, family, budget, reader, validation_rows(there, config))


def validation_rows(corpus: Corpus | PromptCorpus, config: RunConfig) -> int:
    """`UserError` where there is not one: what the end of a run needs is asked for at its beginning."""
    if isinstance(corpus, PromptCorpus):
        return min(config.evaluate.rows, corpus.split("validation").count)
    return sum(count for _, count in held_out_counts(corpus, config.data, config.evaluate.rows))


def _check_memory(budget: Budget, config: RunConfig, device: str) -> None:
    """`UserError` where a plan for this machine is beyond anything that its error explains."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return
    if device == "cpu" and not here().several and budget.memory_bytes > 2 * there:
        raise UserError(
            f"the run would take about {quantity(budget.memory_bytes, 'B')} of memory and this machine has "
            f"{quantity(there, 'B')}: raise train.accumulate (now {config.train.accumulate}), or lower train.batch or the size"
        )


def resolved(data: DataConfig) -> DataConfig:
    """The data with their format named. `UserError` where a setting is of another format."""
    form = detected(data.source) if data.format == "auto" else data.format
    return validated(DataConfig, {**data.model_dump(), "format": form})


def prepared(data: DataConfig, tokenizer: Tokenizer, progress: Progress | None = None) -> Corpus | PromptCorpus:
    """The tokens of the data, both splits."""
    if data.format == "text":
        return prepare_text(data, tokenizer, progress=progress)
    recipe = Recipe(data.format, data.template, data.length, data.eos, data.overlong)
    return prepare_prompts(data.source, tokenizer, recipe, validation=data.validation, progress=progress)


def held_out(corpus: Corpus | PromptCorpus, data: DataConfig, eos: int, limit: int | None) -> Rows:
    """At most `limit` rows of the validation split, evenly spread over it."""
    if isinstance(corpus, PromptCorpus):
        return corpus.split("validation").spread(limit)
    return held_out_rows(corpus, data, eos, limit)
