"""The bound on held-out text, in nats per token, with its errors: by any estimator, the family's own first.

Draw r of window i is sample i R + r of one low-discrepancy sequence of times over the whole set, and the noise of a
sample is a function of its number: the same for every family, model, estimator, batch size and machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redraft.evaluation.estimators import ContinuousTime, Estimator
from redraft.families.base import Family
from redraft.network.transformer import Transformer
from redraft.noise.draws import Key
from redraft.types import Batch


@dataclass(frozen=True)
class Bound:
    """`nats` per token. `monte_carlo_error`: one standard error of the noise draws (0 where the likelihood is exact; an
    upper estimate, as draws spread evenly in time vary less than independent ones). `sampling_error`: one standard error
    of the choice of windows and the draws together, windows taken as independent."""

    nats: float
    monte_carlo_error: float
    sampling_error: float
    exact: bool
    windows: int
    draws: int

    def bits_per_byte(self, bytes_per_token: float) -> float:
        return self.nats / math.log(2) / bytes_per_token

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats)


def bound(
    network: Transformer, family: Family, windows: NDArray[np.int64], draws: int, batch: int, seed: int = 0
) -> Bound:
    """Score `windows` [N, L] with `draws` draws each of the family's own bound (one where the family is exact)."""
    return estimate(network, family, windows, ContinuousTime(), draws, batch, seed)


def estimate(
    network: Transformer,
    family: Family,
    windows: NDArray[np.int64],
    estimator: Estimator,
    draws: int,
    batch: int,
    seed: int = 0,
) -> Bound:
    """Score `windows` [N, L] with `draws` draws each of `estimator` (one where they would not differ).

    `exact` then means: no randomness. For a chain rule in a fixed order, exact for the model that writes in that order.
    """
    per_token = draw_nats(network, family, windows, estimator, draws, batch, seed) / windows.shape[1]
    return Bound(
        nats=float(per_token.mean()),
        monte_carlo_error=_noise_error(per_token),
        sampling_error=float(per_token.mean(1).std() / math.sqrt(len(windows))) if len(windows) > 1 else math.inf,
        exact=not estimator.random(family),
        windows=len(windows),
        draws=per_token.shape[1],
    )


@torch.no_grad()
def draw_nats(
    network: Transformer,
    family: Family,
    windows: NDArray[np.int64],
    estimator: Estimator,
    draws: int,
    batch: int,
    seed: int = 0,
) -> Tensor:
    """Nats of each window by each draw, float64 [N, R]; R = 1 where draws would not differ. `batch` rows a pass."""
    draws = draws if estimator.random(family) else 1
    key = Key.of(seed).fold("evaluation")
    tokens = torch.from_numpy(windows).repeat_interleave(draws, 0)
    parts = [
        estimator.nats(network, family, part, draws=draws, key=key).cpu() for part in _batches(tokens, batch, network)
    ]
    return torch.cat(parts).view(len(windows), draws)


def _batches(tokens: Tensor, size: int, network: Transformer) -> Iterator[Batch]:
    device = network.embedding.device
    for index in torch.arange(len(tokens)).split(size):
        part = tokens[index].to(device)
        yield Batch(part, torch.ones_like(part, dtype=torch.bool), index.to(device))


def _noise_error(per_token: Tensor) -> float:
    """Standard error of the mean from the spread of the draws within each window: [N, R] -> one number."""
    windows, draws = per_token.shape
    if draws == 1:
        return 0.0
    return float((per_token.var(1) / draws).sum().sqrt() / windows)
