"""What scoring will cost, told beforehand: forward passes of a row, and their time by timing the model's own network."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.display import duration, quantity
from redraft.evaluation.compute import wait
from redraft.evaluation.likelihood.estimators import Estimator
from redraft.families.base import Family
from redraft.network.padding import reading
from redraft.network.transformer import Transformer
from redraft.network.wrapped import Wrapped
from redraft.noise.counter_rng import Key
from redraft.text.shards.packing import Rows
from redraft.types import Batch, Network, View

ROWS, DRAWS = 512, 4  # windows and draws of each, where nobody says
# Tokens to read where nobody says how many windows, by an estimator that takes many passes for one: about half a minute of
# two cores for a network of a hundred thousand parameters.
PATIENCE = 1 << 21


@dataclass(frozen=True)
class Cost:
    """`passes` of a row through the network, and `headed`: how often all its scored tokens are predicted."""

    rows: int
    draws: int
    passes: int
    headed: int


def cost(rows: Rows, estimator: Estimator, family: Family, draws: int, batch: int) -> Cost:
    """Of `likelihood.estimate`. A batch takes as many passes as the row with most scored tokens in it."""
    draws, counts = (draws if estimator.random(family) else 1), rows.scored.sum(1)
    passes = headed = 0
    for start in range(0, len(counts) * draws, batch):
        stop = min(start + batch, len(counts) * draws)
        most = int(counts[start // draws : (stop - 1) // draws + 1].max())
        passes += (stop - start) * estimator.passes(family, most)
        headed += (stop - start) * estimator.headed(family, most)
    return Cost(len(counts), draws, passes, headed)


def affordable(estimator: Estimator, family: Family, length: int) -> tuple[int, int]:
    """Windows of `length` tokens and draws of each, where nobody says how many."""
    passes = estimator.passes(family, length)
    if passes <= 2:
        return ROWS, DRAWS
    return max(2, min(ROWS, PATIENCE // (passes * length))), 1


@torch.no_grad()
def seconds(price: Cost, network: Transformer, family: Family, part: Batch) -> float:
    """The time that it will take, by one batch of the family's own bound, which is timed when it is scored again."""
    for _ in range(2):
        clock, began = Timed(network), time.perf_counter()
        family.nelbo(reading(clock, part), part, key=Key.of(0))
        wait(clock.device)
        whole = time.perf_counter() - began
    return price.passes * clock.seconds / clock.rows + price.headed * (whole - clock.seconds) / len(part.tokens)


class Timed(Wrapped):
    """A network that measures the time in its trunk, and counts the rows."""

    def __init__(self, network: Transformer):
        self.network: Network = network
        self.device, self.seconds, self.rows = network.embedding.device, 0.0, 0

    def trunk(self, view: View) -> Tensor:
        wait(self.device)
        began = time.perf_counter()
        out = self.network.trunk(view)
        wait(self.device)
        self.seconds, self.rows = self.seconds + time.perf_counter() - began, self.rows + len(view.tokens)
        return out


def cost_sentence(price: Cost, what: str, expected: float) -> str:
    drawn = f", {price.draws} draws each" if price.draws > 1 else ""
    return (
        f"Scoring {price.rows} {what}{drawn}: {quantity(price.passes)} passes of a row through the network, about "
        f"{duration(expected)}."
    )
