"""NELBO of held-out text in nats per token, with its standard error, by any estimator.

Draw r of window i is sample i R + r of one low-discrepancy sequence of times over the whole set, and the noise of a
sample is a function of its number: the same for every family, model, estimator, batch size and machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redraft.evaluation.likelihood.estimators import Estimator, own_bound
from redraft.families.base import Family
from redraft.network.padding import reading
from redraft.network.transformer import Transformer
from redraft.network.wrapped import Wrapped
from redraft.noise.counter_rng import Key
from redraft.text.shards.packing import Rows, given_first
from redraft.types import Batch, Network, View

Told = Callable[[int], object]


@dataclass(frozen=True)
class Bound:
    """`nats` per token. `monte_carlo_error`: one standard error of the noise draws (0 where the likelihood is exact; None
    where a window had one draw, which cannot tell; an upper estimate, as draws spread evenly in time vary less than
    independent ones). `sampling_error`: one standard error of the choice of windows and the draws together, windows taken as
    independent; None where there is one window, which cannot tell."""

    nats: float
    monte_carlo_error: float | None
    sampling_error: float | None
    exact: bool
    windows: int
    draws: int

    def bits_per_byte(self, bytes_per_token: float) -> float:
        return self.nats / math.log(2) / bytes_per_token

    @property
    def perplexity(self) -> float | None:
        """None where it is beyond all floats."""
        return exponential(self.nats)


def exponential(nats: float) -> float | None:
    """exp(nats); None where a float does not hold it, or nats is no finite number."""
    value = math.exp(nats) if nats < 709 else math.inf
    return value if math.isfinite(value) else None


def bound(
    network: Transformer,
    family: Family,
    windows: NDArray[np.int64] | Rows,
    draws: int,
    batch: int,
    seed: int = 0,
    told: Told | None = None,
) -> Bound:
    """Score `windows`, [N, L] or rows of their own lengths, with `draws` draws each of the family's own bound (one where the
    family is exact)."""
    return estimate(network, family, windows, own_bound(family), draws, batch, seed, told)


def estimate(
    network: Transformer,
    family: Family,
    windows: NDArray[np.int64] | Rows,
    estimator: Estimator,
    draws: int,
    batch: int,
    seed: int = 0,
    told: Told | None = None,
) -> Bound:
    """Score `windows` with `draws` draws each of `estimator` (one where they would not differ). The mean is over all scored
    tokens: rows weigh as many as they have.

    `exact` then means: no randomness. For a chain rule in a fixed order, exact for the model that writes in that order.
    """
    rows = as_rows(windows, family.begins)
    counts = torch.from_numpy(rows.scored.sum(1)).double()
    per_token = draw_nats(network, family, rows, estimator, draws, batch, seed, told) / counts.mean()
    nats, n = float(per_token.mean()), len(rows.tokens)
    # Delta method for the ratio nats / tokens: the spread of each row's nats less what its length predicts.
    beyond = per_token.mean(1) - nats * (counts / counts.mean() - 1)
    return Bound(
        nats=nats,
        monte_carlo_error=_noise_error(per_token) if estimator.random(family) else 0.0,
        sampling_error=float(beyond.std() / math.sqrt(n)) if n > 1 else None,
        exact=not estimator.random(family),
        windows=n,
        draws=per_token.shape[1],
    )


@torch.no_grad()
def draw_nats(
    network: Transformer,
    family: Family,
    windows: NDArray[np.int64] | Rows,
    estimator: Estimator,
    draws: int,
    batch: int,
    seed: int = 0,
    told: Told | None = None,
) -> Tensor:
    """Nats of each window by each draw, float64 [N, R]; R = 1 where draws would not differ. `batch` rows a pass. `told`: hears
    how many rows the network has read."""
    draws, rows = draws if estimator.random(family) else 1, as_rows(windows, family.begins)
    key, read = Key.of(seed).fold_in("evaluation"), network if told is None else Counted(network, told)
    parts = [
        estimator.nats(reading(read, part), family, part, draws=draws, key=key).cpu()
        for part in batches(rows, draws, batch, network.embedding.device)
    ]
    return torch.cat(parts).view(len(rows.tokens), draws)


class Counted(Wrapped):
    """A network that tells how many rows it has read."""

    def __init__(self, network: Network, told: Told):
        self.network, self.told, self.rows = network, told, 0

    def trunk(self, view: View) -> Tensor:
        out = self.network.trunk(view)
        self.rows += len(view.tokens)
        self.told(self.rows)
        return out


def as_rows(windows: NDArray[np.int64] | Rows, begins: bool = True) -> Rows:
    """Windows [N, L] as rows of which every token is scored, or all that something precedes (`Family.begins`)."""
    if not isinstance(windows, Rows):
        windows = Rows(windows, np.ones(windows.shape, np.bool_), np.arange(len(windows)))
    return windows if begins else given_first(windows)


def batches(rows: Rows, draws: int, size: int, device: torch.device) -> Iterator[Batch]:
    """Draw r of row i as sample i R + r, with no more padding than the longest row of a batch needs."""
    for index in torch.arange(len(rows.tokens) * draws).split(size):
        number = index.numpy() // draws
        lengths = None if rows.lengths is None else rows.lengths[number]
        longest = rows.tokens.shape[1] if lengths is None else int(lengths.max())
        tokens, scored = (torch.from_numpy(x[number, :longest]).to(device) for x in (rows.tokens, rows.scored))
        apart = None if rows.documents is None else torch.from_numpy(rows.documents[number]).long().to(device)
        padded = None if lengths is None else torch.from_numpy(lengths).to(device)
        yield Batch(tokens, scored, index.to(device), padded, apart)


def _noise_error(per_token: Tensor) -> float | None:
    """Standard error of the mean from the spread of the draws within each window: [N, R] -> one number."""
    windows, draws = per_token.shape
    if draws == 1:
        return None
    return float((per_token.var(1) / draws).sum().sqrt() / windows)
