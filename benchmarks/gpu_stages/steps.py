"""Stages 2a and 2b: training steps of the four families, eager and compiled, at two sizes; what they take and keep."""

from __future__ import annotations

from typing import Any

import torch
import torch._dynamo

from gpu_stages.ceiling import BF16, SQUARE
from gpu_stages.networks import Steps, how, optimizer_of, random_network
from gpu_stages.plan import FAMILIES, Scale
from gpu_stages.record import Cases
from gpu_stages.runs import can_compile
from gpu_stages.timing import memory, pace, peak_flops, profiled, sample_noise
from redraft.config import RunConfig, TrainConfig, validated
from redraft.network.flops import training_flops_per_token
from redraft.network.sizes import from_size
from redraft.network.transformer import Transformer
from redraft.planning.budget import memory_plan
from redraft.registry import FAMILIES as REGISTERED
from redraft.registry import checked_options

# One program serves all families, each a little otherwise: past the default of 8, what is compiled would run eagerly.
torch._dynamo.config.recompile_limit = 64


def small(cases: Cases, device: torch.device, size: Scale) -> None:
    """Eager and compiled side by side, family by family, and what a step spends its time on."""
    network = made(size.small, device, size)
    for compile in (False, True) if compiles(device) else (False,):
        for family in FAMILIES:
            trained = how(device, size.small_rows, compile=compile)
            name = f"{family} {'compiled' if compile else 'eager'}"
            cases.run(name, step, cases, network, family, trained, size, True, needs=25 if compile else 8)
            sample_noise(device)


def large(cases: Cases, device: torch.device, size: Scale) -> None:
    """Compiled, the way it is trained; MDLM eager too; and blocks checkpointed at more rows. Peaks beside the plan."""
    network = made(size.large, device, size)
    can = compiles(device)
    ways = [(family, how(device, size.large_rows, compile=can)) for family in ("mdlm", "ar", "duo", "esolm")]
    more = {"compile": can, "checkpointing": "blocks"}
    ways.insert(1, ("mdlm", how(device, size.checkpointed_rows, **more)))
    if can:
        ways.insert(2, ("mdlm", how(device, size.large_rows)))
    for family, trained in ways:
        words = ["compiled" if trained.compile else "eager", *["checkpointed"] * (trained.checkpointing != "none")]
        name = " ".join([family, *words, f"x{trained.batch}"])
        cases.run(name, step, cases, network, family, trained, size, False, needs=15)
        sample_noise(device)


def made(name: str, device: torch.device, size: Scale) -> tuple[Transformer, torch.optim.Optimizer]:
    network = random_network(from_size(name, "dit", size.vocab), device, BF16)
    return network, optimizer_of(network)


def compiles(device: torch.device) -> bool:
    """Whether steps are compiled too: a rehearsal leaves that to stage 1."""
    return device.type != "cpu" and can_compile(device)


def step(
    cases: Cases,
    network: tuple[Transformer, torch.optim.Optimizer],
    family: str,
    trained: TrainConfig,
    size: Scale,
    profile: bool,
) -> dict[str, Any]:
    """Tokens/s and useful FLOP/s (ledger `full`) of steps at a steady pace, and their share of what the device can do."""
    shape, device = network[0].shape, network[0].embedding.device
    run = Steps(*network, family, trained, size.length)
    peaks = memory(run, device)
    seconds = pace(run, device, size.least)
    tokens, entry = trained.batch * size.length, REGISTERED[family]
    options = checked_options("family", REGISTERED, family, {})
    passes, effort = entry.forward_tokens(options), entry.effort(options)
    rate = tokens / seconds * training_flops_per_token(shape, size.length, "full", passes, effort)
    numbers: dict[str, Any] = {"tokens_per_second": tokens / seconds, "seconds": seconds, "flops_per_second": rate}
    numbers |= {"share": share(cases, rate), "mfu": rate / peak if (peak := peak_flops(device)) else None, **peaks}
    numbers |= {"planned": planned(family, trained, network[0], size), "parameters": parameters(network[0])}
    return numbers | (profiled(run, device).numbers(seconds) if profile else {})


def share(cases: Cases, rate: float) -> float | None:
    """Of the best large product of stage 0."""
    found = cases.report.stages["0"].numbers(SQUARE) if "0" in cases.report.stages else None
    return rate / found["flops_per_second"] if found else None


def planned(family: str, trained: TrainConfig, network: Transformer, size: Scale) -> float:
    """What `redraft plan` says of memory, bytes."""
    table = {"family": family, "data": {"length": size.length}, "train": trained.model_dump(exclude_none=True)}
    config = validated(RunConfig, table)
    passes = REGISTERED[family].forward_tokens(config.family.options)
    return memory_plan(config, network.shape, passes).total


def parameters(network: Transformer) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
