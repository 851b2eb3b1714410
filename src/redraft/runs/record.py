"""The record of a run: every count, the result with its errors, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redraft.evaluation.compute import recorded
from redraft.evaluation.likelihood.nelbo import Bound
from redraft.evaluation.provenance import git_state, machine, versions
from redraft.text.examples.chat import source
from redraft.text.examples.examples import PromptCorpus
from redraft.text.examples.prompts import DEFAULT_TEMPLATE
from redraft.text.shards.shards import Corpus
from redraft.text.tokenizers.tokenizer import MOST_LOST
from redraft.training.setup import Setup

RECORD = "record.json"


@dataclass(frozen=True)
class Timing:
    """Of the execution that finished a run: wall seconds of training, and the steps it did itself."""

    seconds: float
    steps: int


def run_record(
    name: str, arm: str, setup: Setup, result: Bound, timing: Timing, start: dict[str, Any] | None
) -> dict[str, Any]:
    """What `record.json` holds. `device`, `device_name`, `machine`, `timing`, `versions` and `git` tell of this execution, the
    rest of the run."""
    config, budget = setup.config, setup.budget
    split = setup.corpus.split("validation")
    bytes_per_token = split.bytes_per_token if split.lost_share <= MOST_LOST else None
    return {
        "name": name,
        "arm": arm,
        "family": config.family.name,
        "options": config.family.options,
        "seed": config.seed,
        "start": start,
        "size": config.network.size,
        "block_weights": budget.shape.block_weights,  # what a size that is a number counts
        "params": budget.params,
        "parameters": budget.parameters,
        "tokens": budget.tokens,
        "steps": budget.steps,
        "batch": config.train.batch,
        "length": config.data.length,
        "flops": budget.flops[budget.convention],
        "budget": config.budget.flops,
        "convention": budget.convention,
        "flops_by_convention": budget.flops,
        "loss": result.nats,
        "loss_se": result.monte_carlo_error,
        "loss_sampling_se": result.sampling_error,
        "loss_kind": "exact" if result.exact else "bound",
        "bits_per_byte": result.bits_per_byte(bytes_per_token) if bytes_per_token else None,
        "ppl": result.perplexity,
        "windows": result.windows,
        "draws": result.draws,
        "data": data_summary(setup),
        "versions": versions(),
        "git": git_state(),
        **recorded(config.train.device, config.train.precision, config.train.compile),
        "machine": machine(config.train.device),
        "timing": {
            "seconds": timing.seconds,
            "steps": timing.steps,
            "tokens_per_second": timing.steps * budget.tokens_per_step / timing.seconds if timing.seconds else None,
        },
    }


def data_summary(setup: Setup) -> dict[str, Any]:
    data = setup.config.data
    summary = {
        "source": setup.corpus.source if isinstance(setup.corpus, Corpus) and setup.corpus.parts else data.source,
        "validation": data.validation,
        "format": data.format,
        "cfg_dropout": data.cfg_dropout,
        "sha256": setup.corpus.sha256,
        "tokenizer": setup.tokenizer.name,
        "tokenizer_fingerprint": setup.tokenizer.fingerprint,
        "validation_lost": setup.corpus.split("validation").lost_share,
    }
    if data.format == "chat":
        summary["chat_template"] = source(data.template or DEFAULT_TEMPLATE["chat"])
    if isinstance(setup.corpus, PromptCorpus):
        return summary | _examples(setup, setup.corpus)
    train = setup.corpus.split("train")
    return summary | {
        "tokens": train.count,
        "epochs": setup.budget.tokens / train.count,
        "validation_tokens": setup.corpus.split("validation").count,
        "validation_shared": setup.corpus.shared,
    }


def _examples(setup: Setup, corpus: PromptCorpus) -> dict[str, Any]:
    """Of examples: tokens with prompts, without padding; epochs are passes over the examples."""
    train, held_out = corpus.split("train"), corpus.split("validation")
    return {
        "tokens": int(train.starts[-1]),
        "epochs": setup.budget.steps * setup.config.train.batch / train.count,
        "validation_tokens": int(held_out.starts[-1]),
        "examples": train.count,
        "validation_examples": held_out.count,
        "truncated": train.truncated,
        "skipped": train.skipped,
        "scored_tokens": int(train.paid.sum()),
    }
