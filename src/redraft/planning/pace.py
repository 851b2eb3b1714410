"""Time estimates of training and scoring on this CPU, by timing one block of the network itself. No torch until then.

Narrow networks reach a lower FLOP/s in matrix products than wide ones, and spend more of their time outside of matrix
products. So products of the run's own width and length are timed, and its other operations too.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from redraft.config import RunConfig
from redraft.network.flops import training_flops_per_token
from redraft.network.sizes import Shape
from redraft.planning.budget import Budget
from redraft.registry import FAMILIES
from redraft.text.shards.prepare import cores

# Read off benchmarks of steps on one machine: what a step takes beside, each block, and all else; and `_interpreted` there.
BLOCK_OVERHEAD, STEP_OVERHEAD, INTERPRETED = 1.5e-3, 6e-3, 1e-4  # seconds
FORWARD_AND_BACK = 3.0  # passes forward that one forward and back costs
TIMED = 4  # networks of a study, at most
MOMENT = 0.04  # seconds that each part is timed for
PRODUCTS = 4e8  # FLOPs of a timed product, at most

Array = NDArray[np.float32]


def seconds(
    budgets: Sequence[Budget], flops_per_second: float, at_a_time: int = 1, devices: int | None = None
) -> float:
    """Time to expect of training at the machine's rate of useful FLOPs (everything counted), and a little for each step; at
    least that of the longest run, which has one of the `devices` (as many as runs at a time, if left out) to itself."""
    each = [budget.flops["full"] / flops_per_second for budget in budgets]
    work = max(sum(each), (devices or at_a_time) * max(each, default=0.0))
    beside = sum(b.steps * (STEP_OVERHEAD + BLOCK_OVERHEAD * b.shape.depth) for b in budgets) * slowness()
    return work + beside / at_a_time


@cache
def slowness() -> float:
    """How many times as long this machine, as busy as it is, takes for small operations as that of the overheads."""
    return _timed(_interpreted, 5 * MOMENT) / INTERPRETED


def _interpreted() -> object:
    x = y = _ones(8, 16)
    for _ in range(100):
        y = y * x + x
    return y


def scoring_flops(config: RunConfig, budget: Budget) -> float:
    """FLOPs (everything counted) of the score at the end: passes forward over rows of validation, for each draw."""
    entry, rows = FAMILIES[config.family.name], config.evaluate.rows
    draws = 1 if entry.causal else config.evaluate.draws
    per_token = training_flops_per_token(
        budget.shape, max(1, round(budget.row)), "full", entry.forward_tokens(config.family.options)
    )
    return rows * budget.row * draws * per_token / FORWARD_AND_BACK


def cpu_rate(budgets: Sequence[Budget], threads: int = 0, at_a_time: int = 1) -> float:
    """Useful FLOP/s (everything counted) to expect of this machine in all, when `at_a_time` of the runs train at once with so
    many threads each (0: all cores). Of many networks a few are timed, from the narrowest to the widest."""
    most = available()
    own = min(threads or most, most)
    shapes = sorted({b.shape: b for b in budgets}.values(), key=lambda b: b.shape.width)
    count = min(TIMED, len(shapes))
    some = [shapes[i * (len(shapes) - 1) // max(1, count - 1)] for i in range(count)]
    # Threads of BLAS wait for each other in a loop: where cores are busy that is all they do.
    with threadpool_limits(1):
        rates = [(b.shape.width, own * _rate(b.shape, max(1, round(b.row)))) for b in some]
    near = lambda width: min(rates, key=lambda known: abs(math.log(known[0] / width)))[1]
    work = sum(b.flops["full"] for b in budgets)
    spent = sum(b.flops["full"] / near(b.shape.width) for b in budgets)
    return work / spent * at_a_time * min(1.0, most / (own * at_a_time))


def available() -> int:
    """Threads that products of this process may use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(told), cores()) if told.isdigit() and int(told) else cores()


def _rate(shape: Shape, length: int) -> float:
    """FLOP/s of one pass forward and back on one thread."""
    width = max(shape.width, shape.hidden)
    tokens = max(32, min(1024, int(PRODUCTS / (2 * shape.width * width))))
    rows, own = max(1, tokens // length), min(length, tokens)
    products, rest = _block(shape, rows, own)
    head, entropy = _head(shape, rows * own)
    each = lambda some: sum(_timed(part) for part in some) / (rows * own)
    forward = shape.depth * each(products + rest) + each(head + entropy)
    return training_flops_per_token(shape, own, "full") / (FORWARD_AND_BACK * forward)


Parts = list[Callable[[], object]]


def _block(shape: Shape, rows: int, length: int) -> tuple[Parts, Parts]:
    """What a block does to rows of tokens: its products, and the rest."""
    x, a = _ones(rows * length, shape.width), _ones(rows * length, shape.hidden)
    q, mixed = _ones(rows, shape.heads, length, shape.head), _ones(rows * length, shape.heads * shape.head)
    scores = _ones(rows, shape.heads, length, length)
    wide = _ones(shape.width, (shape.heads + 2 * shape.keys) * shape.head)
    up, down = _ones(shape.width, shape.hidden), _ones(shape.hidden, shape.width)
    out = _ones(shape.heads * shape.head, shape.width)
    matrices = 2 if shape.block == "llama" else 1
    products: Parts = [lambda: x @ wide, lambda: mixed @ out, lambda: a @ down, lambda: scores @ q]
    products += [lambda: x @ up] * matrices + [lambda: q @ q.swapaxes(2, 3)]
    norm = lambda: x * (1 / np.sqrt((x * x).mean(-1, keepdims=True))) + x
    return products, [norm, norm, norm, lambda: np.exp(scores), lambda: np.tanh(a) * a]


def _head(shape: Shape, tokens: int) -> tuple[Parts, Parts]:
    tokens = max(1, min(tokens, int(PRODUCTS / (2 * shape.width * shape.vocab)) or 1))
    x, head, logits = _ones(tokens, shape.width), _ones(shape.width, shape.vocab), _ones(tokens, shape.vocab)
    return [lambda: x @ head], [lambda: np.exp(logits).sum(-1)]


def _ones(*sizes: int) -> Array:
    return np.ones(sizes, np.float32)


def _timed(part: Callable[[], object], moment: float = MOMENT) -> float:
    """Mean seconds per call, over a short time: the mean and not the minimum, so that other load on the machine counts."""
    part()
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < moment or not count:
        part()
        count += 1
    return spent / count
