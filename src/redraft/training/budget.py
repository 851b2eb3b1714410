"""What a run will be and cost, before anything is spent. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from redraft.config import RunConfig
from redraft.errors import UserError
from redraft.network.ledger import CONVENTIONS, non_embedding, parameters, training_flops_per_token
from redraft.network.sizes import Shape, from_config
from redraft.registry import FAMILIES

# What a training step on a CPU adds up to: a share of the matmul rate, and a time for its few hundred small operations.
# Read off benchmarks/train_step.py and the demo's smallest networks, on one machine.
CPU_EFFICIENCY = 0.4
STEP_OVERHEAD = 4e-3  # seconds


@dataclass(frozen=True)
class Budget:
    """Steps, tokens and FLOPs of a run. `flops` maps each convention to the run's total.

    Tokens are those the network reads, padding not counted, prompts included. `row` is how many a row has in the mean:
    where rows differ, `tokens_per_step` is a mean too, rounded, and FLOPs are counted as if all rows were of that length.
    """

    shape: Shape
    parameters: dict[str, int]
    params: int  # without the input embedding
    tokens_per_step: int
    steps: int
    tokens: int
    convention: str
    flops: dict[str, float]
    memory_bytes: float
    row: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan_run(
    config: RunConfig, vocab: int, row: float | None = None, tokens_in: Callable[[int], int] | None = None
) -> Budget:
    """The budget of a run over `vocab` text ids; `UserError` where it does not buy one step.

    `row`: tokens a row has in the mean, and `tokens_in`: tokens of so many samples. Left out, rows are taken as whole: of
    prompt formats, whose data alone can tell, the plan is then an upper limit.
    """
    shape, batch = from_config(config.network, vocab), config.train.batch
    row = expected_row(config) if row is None else row
    length, per_step = max(1, round(row)), max(1, round(batch * row))
    entry, options = FAMILIES[config.family.name], config.family.options
    passes, effort = entry.passes(options), entry.effort(options)
    per_token = {c: training_flops_per_token(shape, length, c, passes, effort) for c in CONVENTIONS}
    steps = _steps(config, per_step, per_token[config.budget.convention])
    tokens = tokens_in(steps * batch) if tokens_in else steps * per_step
    return Budget(
        shape=shape,
        parameters=parameters(shape),
        params=non_embedding(shape),
        tokens_per_step=per_step,
        steps=steps,
        tokens=tokens,
        convention=config.budget.convention,
        flops={c: f * tokens for c, f in per_token.items()},
        memory_bytes=_memory(config, shape, passes),
        row=row,
    )


def expected_row(config: RunConfig) -> float:
    """Tokens of a row of text in the mean: a share `short` of the steps has (L + 1) / 2 of them (SMDM counts so too)."""
    length, short = config.data.length, config.data.short
    return length * (1 - short) + short * (length + 1) / 2


def _steps(config: RunConfig, per_step: int, flops_per_token: float) -> int:
    """floor(budget / cost of a step), as both papers count."""
    budget = config.budget
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        given, cost, unit = budget.tokens, float(per_step), "tokens"
    elif budget.flops is not None:
        given, cost, unit = budget.flops, per_step * flops_per_token, f"FLOPs ({budget.convention})"
    else:
        raise UserError("no budget: give --flops, --tokens or --steps (for example --flops 1e15)")
    steps = int(given // cost)
    if steps < 1:
        raise UserError(f"the budget of {given:.3g} {unit} is too small: one step costs {cost:.3g}; lower train.batch")
    return steps


def _memory(config: RunConfig, shape: Shape, passes: float) -> float:
    """Rough peak bytes: weights, gradients and AdamW in float32, and the activations of one micro-batch.

    A dit block keeps about 21 d numbers a token (llama 24 d), its residual stream in float32; the head's chunk is small.
    """
    state = 16.0 * sum(parameters(shape).values()) + (4 * sum(parameters(shape).values()) if config.train.ema else 0)
    tokens = config.train.batch // config.train.accumulate * config.data.length * passes
    width = 4 if config.train.precision == "float32" else 2.6
    return state + tokens * shape.depth * (21 if shape.block == "dit" else 24) * shape.width * width


def seconds(budgets: Sequence[Budget], flops_per_second: float, at_a_time: int = 1) -> float:
    """Time to expect at the machine's rate of useful FLOPs (everything counted), and a little for each step."""
    work = sum(budget.flops["full"] for budget in budgets) / flops_per_second
    return work + sum(budget.steps for budget in budgets) * STEP_OVERHEAD / at_a_time


def cpu_rate() -> float:
    """Useful float32 FLOP/s to expect from this machine's cores: a timed matrix product x CPU_EFFICIENCY."""
    a, b = np.ones((512, 256), np.float32), np.ones((256, 1024), np.float32)
    best = min(_timed(a, b) for _ in range(5))
    return 2 * 512 * 256 * 1024 / best * CPU_EFFICIENCY


def _timed(a: np.ndarray, b: np.ndarray) -> float:
    start = time.perf_counter()
    a @ b
    return time.perf_counter() - start
