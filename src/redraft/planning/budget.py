"""Shape, tokens, steps, FLOPs and memory of a run, computed before anything is spent. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from redraft.config import RunConfig
from redraft.errors import UserError
from redraft.network.flops import CONVENTIONS, non_embedding, parameters, training_flops_per_token
from redraft.network.sizes import DEFAULT, Shape, from_config
from redraft.registry import FAMILIES

# Numbers that a block keeps for a token: multiples of d in float32, of d and of the MLP's inner width in the compute format.
# dit: two residuals, two norms, two gated outputs; two modulated inputs, q k v, q and k turned, the mixed values twice; two
# inner ones.
KEPT = {"dit": (6.0, 9.0, 2.0), "llama": (4.0, 9.0, 4.0), "gpt2": (4.0, 9.0, 2.0)}
# Read off benchmarks/memory_plan.py, on a CPU: what malloc keeps in pieces, of activations (of a GPU's allocator an estimate);
# bytes of a chunk of logits and of what libraries set up, by the bytes of the compute format.
SLACK = 1.2
WORKSPACE = {4: 70e6, 2: 100e6}
# Of a GPU: logits at once in head.py. Estimates, not measured: what CUDA and its libraries keep, and NCCL for several ranks.
CHUNK_LOGITS_GPU = 1 << 27
CUDA, NCCL = 1e9, 1e9
GPU = "gpu"  # the device of a plan that is of one, whatever its name will be
# Weights up to which every rank keeps all of them: with gradients, AdamW and a moving average 4 GB in float32.
SMALL = 200_000_000


@dataclass(frozen=True)
class Budget:
    """Steps, tokens and FLOPs of a run. `flops` maps each convention to the run's total.

    Tokens are those the network reads, padding not counted, prompts included. `row` is how many a row has in the mean:
    where rows differ, `tokens_per_step` is a mean too, rounded, and FLOPs are counted as if all rows were of that length.
    """

    shape: Shape
    parameters: dict[str, int]
    params: int  # without the input embedding, head included
    tokens_per_step: int
    steps: int
    tokens: int
    convention: str
    flops: dict[str, float]
    memory_bytes: float
    row: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"block_weights": self.shape.block_weights}


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
    passes, effort = entry.forward_tokens(options), entry.effort(options)
    per_token = {c: training_flops_per_token(shape, length, c, passes, effort) for c in CONVENTIONS}
    steps = _steps(config, per_step, _step_flops(config, shape, row, per_token))
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
        memory_bytes=memory_plan(config, shape, passes).total,
        row=row,
    )


def expected_row(config: RunConfig) -> float:
    """Tokens of a row of text in the mean: a share `short` of the steps has (L + 1) / 2 of them (SMDM counts so too)."""
    length, short = config.data.length, config.data.random_length
    return length * (1 - short) + short * (length + 1) / 2


def _step_flops(config: RunConfig, shape: Shape, row: float, per_token: Mapping[str, float]) -> float:
    """FLOPs of a step under the budget's convention, or 3 x batch x `budget.forward`.

    A count that is below the products of blocks and head, or above all products, is of another network: `UserError`.
    """
    budget, batch, length = config.budget, config.train.batch, config.data.length
    if budget.forward is None:
        return max(1, round(batch * row)) * per_token[budget.convention]
    least, most = (length * training_flops_per_token(shape, length, name) / 3 for name in ("blocks+head", "full"))
    if not 0.99 * least < budget.forward < 1.01 * most:
        raise UserError(
            f"budget.forward {budget.forward:.4g} is not of this network: the forward pass of a row of {length} tokens "
            f"takes {least:.4g} FLOPs (blocks+head) to {most:.4g} (full); leave it out, and redraft counts"
        )
    return 3 * batch * budget.forward * row / length


def _steps(config: RunConfig, per_step: int, step_flops: float) -> int:
    """floor(budget / cost of a step), as both papers count."""
    budget = config.budget
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        given, cost, unit = budget.tokens, float(per_step), "tokens"
    elif budget.flops is not None:
        counted = budget.convention if budget.forward is None else "budget.forward"
        given, cost, unit = budget.flops, step_flops, f"FLOPs ({counted})"
    else:
        raise UserError("no budget: give --flops, --tokens or --steps (for example --flops 1e15)")
    steps = int(given // cost)
    if steps < 1:
        or_size = _or_size(config) if budget.tokens is None else ""
        raise UserError(
            f"the budget of {given:.3g} {unit} is too small: one step costs {cost:.3g}; lower train.batch{or_size}"
        )
    return steps


def _or_size(config: RunConfig) -> str:
    """Where nobody gave a size, that a smaller one would do."""
    network = config.network
    own = network.size or network.depth or network.heads or network.width
    return "" if own else f", or give a smaller --size (it is {DEFAULT})"


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of a step. `gathered`: what shards are put together into while they compute. `head`: its
    own gradient, made in the forward pass and scaled in the backward pass."""

    weights: float
    optimizer: float
    average: float
    gradients: float
    gathered: float
    activations: float
    head: float
    workspace: float

    @property
    def total(self) -> float:
        """Activations are all there when the backward pass begins, gradients when it ends; in between one makes room for the
        other."""
        kept = self.weights + self.optimizer + self.average + self.gathered + self.workspace
        return kept + max(self.activations + self.head, self.gradients)


def memory_plan(config: RunConfig, shape: Shape, passes: float = 1.0, ranks: int = 1, per_node: int = 0) -> Memory:
    """What a rank of `ranks`, `per_node` on a machine (0: all), holds.

    P float32 weights, their gradients, AdamW's two moments, a moving average (4, 4, 8, 4 bytes each) are divided by the
    shards; a block keeps c d + c' hidden numbers a token for its backward pass (`KEPT`), of which the narrow ones are in
    the compute format. With checkpointing = "blocks" it keeps its input alone, and one block at a time has the rest.

    Counted from the code: all but the workspace of a CPU (measured), SLACK (measured on a CPU), and what CUDA and NCCL keep
    (estimates). Not counted: a teacher's logits, beside the student's, in distillation.
    """
    counts, train, gpu = parameters(shape), config.train, on_gpu(config, ranks)
    low = 2 if train.precision == "bfloat16" or (gpu and train.precision == "auto") else 4
    count, shards = sum(counts.values()), shards_of(config, sum(counts.values()), ranks, per_node or ranks)
    outer, block = 4.0 * (count - shape.block_weights), low * shape.block_weights / shape.depth
    gathered = outer + 2 * block if shards > 1 else 0.0
    if shards == 1 and low == 2:
        gathered = 2.0 * shape.block_weights  # what each product casts of its weight
    tokens = rows_at_a_time(config, ranks) * config.data.length * passes
    wide, narrow = _kept(shape)
    each = tokens * (4 * wide + low * narrow)
    masks = 2.0 * shape.depth * tokens * shape.width if train.dropout else 0.0  # bool
    blocks = shape.depth * tokens * 4 * shape.width + each if train.checkpointing == "blocks" else shape.depth * each
    # Gradients that wait for the next turn are not in shards yet (FSDP2).
    waiting = shards > 1 and micro_batches(train.batch, train.accumulate, ranks) > 1
    teachers = 4.0 * count / shards if FAMILIES[config.family.name].teachers(config.family.options) else 0.0
    return Memory(
        weights=4.0 * count / shards + teachers,
        optimizer=8.0 * count / shards,
        average=4.0 * count / shards if train.ema else 0.0,
        gradients=4.0 * count if waiting else 4.0 * count / shards + (outer if shards > 1 else 0.0),
        gathered=gathered,
        activations=SLACK * (blocks + 2 * 4 * tokens * shape.width) + masks,
        head=2 * 4.0 * (counts["head"] or shape.vocab * shape.width),  # tied, its gradient is one of its own at first
        workspace=_gpu_workspace(config, shape, ranks, low) if gpu else WORKSPACE[low],
    )


def on_gpu(config: RunConfig, ranks: int = 1) -> bool:
    """Whether a plan is of GPUs: where the configuration says so, or leaves it open and ranks are several."""
    return config.train.device not in ("cpu", "auto") or (config.train.device == "auto" and ranks > 1)


def _gpu_workspace(config: RunConfig, shape: Shape, ranks: int, low: int) -> float:
    """What the head has at its peak beside the `head` of the plan, and what libraries keep.

    A chunk's logits, each with: in a fused cross-entropy its error and that of the chunk before, in the compute format; in a
    rule (half as many logits) five float32 numbers, which are the logit, its probability, two of its gradient and the error
    before, and the logit and the error before in the compute format where that is another. The larger counts, whatever the
    family. Casts: the matrix is twice in bfloat16, and a chunk's float32 product with its errors waits to be added.
    """
    rows = rows_at_a_time(config, ranks) * config.data.length
    fused, rule = 3 * low, 5 * 4 + (2 * low if low < 4 else 0)
    logits, chunk = rows * shape.vocab, CHUNK_LOGITS_GPU
    casts = 4.0 * shape.vocab * shape.width if low < 4 else 0.0  # 2 + 2 + 4 + 4 (the sum) bytes, of which `head` has 8
    return max(min(chunk, logits) * fused, min(chunk // 2, logits) * rule) + casts + CUDA + (NCCL if ranks > 1 else 0)


def micro_batches(batch: int, accumulate: int, ranks: int) -> int:
    """Into how many turns a rank's share of a step is cut: `accumulate`, but fewer where a turn would not have two rows a
    rank, which it is filled up to (`loader.parts`). The step is the same sum however it is cut."""
    return accumulate if ranks == 1 else max(1, min(accumulate, batch // (2 * ranks)))


def rows_at_a_time(config: RunConfig, ranks: int) -> int:
    """Rows that a rank has in its network at once."""
    batch = config.train.batch
    rows = math.ceil(batch / micro_batches(batch, config.train.accumulate, ranks) / ranks)
    return rows if ranks == 1 else max(rows, min(2, batch))


def _kept(shape: Shape) -> tuple[float, float]:
    """Numbers that a block keeps for a token: in float32, and in the compute format."""
    wide, narrow, inner = KEPT[shape.block]
    fewer = 2 * (shape.heads - shape.keys) * shape.head + shape.keys * shape.head * (shape.keys < shape.heads)
    return wide * shape.width, narrow * shape.width + inner * shape.hidden - fewer


def shards_of(config: RunConfig, count: int, ranks: int, per_node: int) -> int:
    """Ranks that hold one copy of the network, as `parallel.chosen` decides. `UserError` where training would refuse."""
    kind = config.train.parallel.kind
    if kind == "auto":
        kind = "ddp" if count <= SMALL else "hsdp" if per_node < ranks else "fsdp"
    if ranks == 1 or kind == "ddp":
        return 1
    shards = ranks if kind == "fsdp" else config.train.parallel.shards or per_node
    if ranks % shards:
        raise UserError(
            f"train.parallel.shards {shards} (the GPUs of a node, if left out) must divide the {ranks} ranks"
        )
    return shards
