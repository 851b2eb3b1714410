"""Speed and quality of sampling: tokens per second, nats per token under a judge, and the entropy that must travel with it.

Quality under a judge can be bought with dull text, so sample entropy and distinct bigrams stand beside it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.hub.model import Model
from redraft.noise.draws import Key
from redraft.types import Batch, last


@dataclass(frozen=True)
class Quality:
    """Of a set of token rows: means over rows, with standard errors. `nats` per token under the judge."""

    nats: float
    nats_se: float
    entropy: float
    entropy_se: float
    distinct_2: float


@dataclass(frozen=True)
class Generated:
    """Token rows [n, L] and what they cost: sampling operations included, the model already loaded and warm."""

    tokens: Tensor
    seconds: float
    forwards: int
    rows_headed: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens.numel() / self.seconds


def generate(model: Model, n: int, length: int, steps: int, temperature: float = 1.0, seed: int = 0) -> Generated:
    """`n` unconditional rows in one batch, timed from the empty canvas to the finished one, after a short warm-up."""
    last(model.frames(model.canvas("", n, min(length, 8)), model.denoiser(), "", 2, seed))
    denoiser, began = model.denoiser(temperature), time.perf_counter()
    made = last(model.frames(model.canvas("", n, length), denoiser, "", steps, seed))
    _wait(model.device)
    return Generated(made.tokens.cpu(), time.perf_counter() - began, denoiser.calls, denoiser.rows)


@torch.no_grad()
def quality(tokens: Tensor, judge: Model) -> Quality:
    """Score rows of the judge's own token ids [n, L]."""
    if not judge.family.exact:
        raise UserError(f"a judge must have an exact likelihood; {judge.family.name!r} has a bound. Try: ar")
    batch = Batch(tokens.to(judge.device), torch.ones_like(tokens, dtype=torch.bool), torch.arange(len(tokens)))
    nats = judge.family.nelbo(judge.network, batch, key=Key.of(0)).nats.double().mean(1).cpu()
    entropy = torch.stack([unigram_entropy(row) for row in tokens])
    return Quality(*_mean(nats), *_mean(entropy), distinct_bigrams(tokens))


def unigram_entropy(row: Tensor) -> Tensor:
    """Entropy of a row's own token frequencies, nats."""
    p = row.unique(return_counts=True)[1].double() / len(row)
    return -(p * p.log()).sum()


def distinct_bigrams(tokens: Tensor) -> float:
    """Share of distinct pairs of neighbours among all of them."""
    pairs = torch.stack([tokens[:, :-1].flatten(), tokens[:, 1:].flatten()], 1)
    return len(pairs.unique(dim=0)) / len(pairs)


def _mean(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
