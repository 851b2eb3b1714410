"""What a plan says of a run, in sentences: network, training, memory of a rank, exports, time. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec

from redraft.commands.starting import adaptation_sentence
from redraft.config import DataConfig, RunConfig, SourceConfig
from redraft.display import duration, quantity
from redraft.network.sizes import size_sentence
from redraft.planning.budget import Budget, memory_plan, micro_batches, on_gpu, rows_at_a_time
from redraft.planning.lr_schedule import idle
from redraft.registry import FAMILIES


def passes_of(config: RunConfig) -> float:
    """Tokens that the network reads for each token of text."""
    return FAMILIES[config.family.name].forward_tokens(config.family.options)


def cluster_sentences(config: RunConfig, budget: Budget, ranks: int, per_node: int) -> list[str]:
    """What one rank of several holds, `per_node` of them on a machine, or a GPU of its own; nothing of a CPU."""
    if ranks == 1 and not on_gpu(config):
        return []
    memory = memory_plan(config, budget.shape, passes_of(config), ranks, per_node)
    parts = ", ".join(f"{name} {quantity(size, 'B')}" for name, size in asdict(memory).items() if size)
    rows, batch = rows_at_a_time(config, ranks), config.train.batch
    turns = micro_batches(batch, config.train.accumulate, ranks)
    told = [f"A rank of {ranks}: {quantity(memory.total, 'B')} at its peak ({parts}), {turns} x {rows} rows a step."]
    if turns * rows * ranks > 1.5 * batch:
        told += [f"Too many ranks: they read {turns * rows * ranks} rows a step, of which {batch} count (train.batch)."]
    return told


def run_sentences(config: RunConfig, budget: Budget) -> list[str]:
    """The plan of one run in sentences."""
    shape, counts = budget.shape, budget.parameters
    groups = ", ".join(f"{name} {quantity(count)}" for name, count in counts.items())
    flops = ", ".join(f"{quantity(value, 'FLOPs')} under {name}" for name, value in budget.flops.items())
    return [
        f"{config.family.name} on {text_of(config.data)} ({config.data.tokenizer}, {shape.vocab} text ids), "
        f"seed {config.seed}.",
        f"Network: {shape.block}, {shape.depth} layers of width {shape.width}, {shape.heads} heads; "
        f"{quantity(sum(counts.values()))} parameters ({groups}).",
        *([] if config.network.depth else [size_sentence(config.network.size, shape)]),
        f"Training: {budget.steps} steps of {config.train.batch} rows x {budget.row:.4g} tokens "
        f"= {quantity(budget.tokens)} tokens, {budget.tokens / budget.params:.3g} for each of the "
        f"{quantity(budget.params)} parameters outside the embedding.",
        f"Compute: {flops}.",
        f"Memory: about {quantity(budget.memory_bytes, 'B')} above the idle process.",
        *adaptation_sentence(config, shape.vocab),
        exports_sentence(config),
        *(f"Note: {told}" for told in idle(config.train, budget.steps)),
    ]


def exports(config: RunConfig) -> list[str]:
    """What the model can be exported to, as far as family and network decide it."""
    network, options = config.network, config.family.options
    grown = any(getattr(network, name) for name in ("kv_heads", "head_dim", "qkv_bias", "qk_norm", "tied", "scaling"))
    grown = grown or network.eps != 1e-5 or network.block == "gpt2"
    ours = not grown and options.get("bos", "spare") == "spare" and not options.get("shift")
    return [*(["transformers"] if ours else []), "native", *_stock(config)]


def _stock(config: RunConfig) -> list[str]:
    """Layouts of others, as `hub/export/stock.py` has them."""
    network = config.network
    if FAMILIES[config.family.name].causal:
        if network.block == "gpt2":
            return ["hf"]
        if network.block != "llama" or (network.qk_norm and network.qkv_bias):
            return []
        return ["hf", "gguf"] if network.qk_norm or network.qkv_bias else ["hf", "llama", "gguf"]
    if (
        config.family.name != "mdlm"
        or network.block != "llama"
        or network.qk_norm
        or network.head_dim
        or network.scaling
    ):
        return []
    return [] if network.qkv_bias and not config.family.options["shift"] else ["hf", "gguf"]


def exports_sentence(config: RunConfig) -> str:
    """The same in a sentence, with the settings that would allow more: after training it is too late."""
    found, causal = exports(config), FAMILIES[config.family.name].causal
    there = ", ".join(name for name in found if name in ("transformers", "native"))
    if "hf" not in found:
        needs = "a stock Llama or GGUF file needs --network.block llama"
        return (
            f"Exports: {there}; {needs}."
            if causal
            else f"Exports: {there} (a stock Llama and GGUF are for --family ar)."
        )
    network, missing = config.network, "" if find_spec("gguf") else " (needs: pip install 'redraft[gguf]')"
    kind = (
        "GPT-2" if network.block == "gpt2" else "Qwen3" if network.qk_norm else "Qwen2" if network.qkv_bias else "Llama"
    )
    if not causal:
        kind = "Dream" if config.family.options["shift"] else "LLaDA"
    return f"Exports: {there}, a stock {kind}{f', a GGUF file{missing}' if 'gguf' in found else ''}."


def text_of(data: DataConfig) -> str:
    """What is read, in a few words."""
    if data.phases:
        return f"{len(data.phases)} phases of mixtures, {' then '.join(_mixed(phase.mixture) for phase in data.phases)}"
    return f"a mixture, {_mixed(data.mixture)}" if data.mixture else data.source


def _mixed(sources: Sequence[SourceConfig]) -> str:
    return " + ".join(f"{one.weight:g} {one.source}" for one in sources)


def time_sentence(training: float, scoring: float, rate: float, source: str = "measured on this CPU") -> str:
    return (
        f"Time: about {duration(training + scoring)}, {duration(training)} of training and {duration(scoring)} of scoring, "
        f"at {quantity(rate, 'FLOP/s')} (everything counted; {source})."
    )
