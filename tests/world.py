"""An enumerable truth: every text of L = 3 tokens over V = 3 ids, with known probabilities, and networks that know them.

An oracle plays the network: it honours the view it is given (tokens, positions, attention, noise level, cache) and
answers with the exact conditional probability. So laws about families and samplers are checked without Monte Carlo.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redraft.noise import schedules
from redraft.types import Attention, Batch, Pattern, View

V, L = 3, 3
SPARE = V
TEXTS = torch.tensor(list(itertools.product(range(V), repeat=L)))  # [27, L]
_weights = torch.rand(len(TEXTS), generator=torch.Generator().manual_seed(7), dtype=torch.float64) ** 3
P = _weights / _weights.sum()  # [27]
ENTROPY = float(-(P * P.log()).sum())


def states(ids: int) -> Tensor:
    """All rows of L ids below `ids`."""
    return torch.tensor(list(itertools.product(range(ids), repeat=L)))


def batch_of(tokens: Tensor) -> Batch:
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(len(tokens)))


def quadrature(nodes: int) -> Iterator[tuple[float, float]]:
    """Gauss-Legendre on [0, 1]: exact for polynomials of degree 2 nodes - 1."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return zip((x + 1) / 2, w / 2, strict=True)


@dataclass(frozen=True)
class TokenCache:
    """An oracle's memory: the tokens and places it has been shown, by slot."""

    tokens: Tensor  # [B, S]
    places: Tensor  # [B, S]
    slots: Tensor

    def at(self, slots: Tensor, run: slice | None = None) -> TokenCache:
        return replace(self, slots=slots)

    def causal(self) -> Tensor:
        return torch.arange(self.tokens.shape[1]) <= self.slots[:, :, None]


class Oracle:
    """Hidden states are log-probabilities already; the head is the identity."""

    def trunk(self, view: View) -> Tensor:
        raise NotImplementedError

    def head(self, rows: Tensor) -> Tensor:
        return rows

    def nats(self, rows: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        nats = -rows.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        return nats if weights is None else nats * weights.to(nats.dtype)

    def by_rule(self, rule: Callable[..., Tensor], rows: Tensor, *others: Tensor, fuse: bool = True) -> Tensor:
        return rule(rows, *others)

    def cache(self, rows: int, size: int) -> TokenCache:
        empty = torch.full((rows, size), SPARE)
        return TokenCache(empty, torch.zeros_like(empty), empty)


def answered_once(trunk: Callable[[Any, View], Tensor]) -> Callable[[Any, View], Tensor]:
    """Rows that show the same tokens at the same noise level get the same answer: each is worked out once. So 8 000 samples
    cost what the few states of this world cost."""

    @wraps(trunk)
    def told(self: Any, view: View) -> Tensor:
        sigma = torch.zeros(len(view.tokens), 1) if view.sigma is None else view.sigma
        alike = view.cache is None and view.attention in (Attention.FULL, Attention.CAUSAL) and len(view.positions) == 1
        if not alike or sigma.shape[1] != 1 or sigma.requires_grad or len(view.tokens) <= len(TEXTS):
            return trunk(self, view)
        levels, level = sigma[:, 0].unique(return_inverse=True)
        base = int(view.tokens.max()) + 1
        number = (view.tokens * base ** torch.arange(view.tokens.shape[1])).sum(1) * len(levels) + level
        known, inverse = number.unique(return_inverse=True)
        first = torch.full_like(known, len(number)).scatter_reduce_(0, inverse, torch.arange(len(number)), "amin")
        few = replace(view, tokens=view.tokens[first], sigma=None if view.sigma is None else view.sigma[first])
        return trunk(self, few)[inverse]

    return told


class Exact(Oracle):
    """log p(x at the query's place | every text token the query may look at). `shift` 1: token j stands at place j + 1."""

    def __init__(self, shift: int = 0):
        self.shift = shift

    @answered_once
    def trunk(self, view: View) -> Tensor:
        tokens, places, allowed = _seen(view)
        same = (tokens[:, :, None] == SPARE) | (_at(places - self.shift) == tokens[:, :, None])  # [B, K, 27]
        fits = (~allowed[..., None] | same[:, None]).all(2)  # [B, Q, 27]
        return _conditional(P * fits, view.positions.expand(view.tokens.shape))


class Score(Oracle):
    """SEDD's ratios, with the noise level taken out: log V p(x at the query's place | the visible tokens)."""

    def trunk(self, view: View) -> Tensor:
        return Exact().trunk(view) + math.log(V)


class LeaveOneOut(Oracle):
    """log p(x at l | every corrupted token but the one at l), through the uniform channel at the view's noise level."""

    @answered_once
    def trunk(self, view: View) -> Tensor:
        assert view.sigma is not None
        return _channel(view, torch.full((V,), 1 / V))


def _channel(view: View, pi: Tensor) -> Tensor:
    """`pi` [K] or [B, K]."""
    alpha = (-view.sigma).exp()[..., None]
    noise = pi.to(alpha.dtype).expand(len(alpha), -1).gather(1, view.tokens)
    likelihood = alpha * (view.tokens[:, None] == TEXTS) + ((1 - alpha[..., 0]) * noise)[:, None]
    others = torch.stack([likelihood[..., [j for j in range(L) if j != l]].prod(-1) for l in range(L)], 1)
    return _conditional(P * others, torch.arange(L).expand_as(view.tokens))


class Hybrid(Oracle):
    """Leave-one-out through a channel towards any law `pi` over K >= V states."""

    def __init__(self, pi: Tensor):
        self.pi = pi

    @answered_once
    def trunk(self, view: View) -> Tensor:
        return _channel(view, self.pi)


class Moving(Oracle):
    """Leave-one-out through GIDD's channel, whose law moves with time: the time is found from the noise level."""

    def __init__(self, schedule: schedules.Hybrid):
        self.schedule = schedule

    @answered_once
    def trunk(self, view: View) -> Tensor:
        masked = self.masked((-view.sigma).exp())
        return _channel(view, torch.cat([((1 - masked) / V).expand(-1, V), masked], 1))

    def masked(self, alpha: Tensor) -> Tensor:
        """The mask's share of the noise: r / (r + V B), where r = sqrt(t / (1 - t)) solves 1 / alpha = 1 + V B r + r^2."""
        mass = self.schedule.mass
        r = ((mass**2 + 4 * (1 / alpha - 1)).sqrt() - mass) / 2
        return 1 / (1 + mass / r.clamp(min=torch.finfo(r.dtype).tiny))


def _seen(view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B, K] and places [B, K] a view can look at, and which of them each query may: [B, Q, K]."""
    tokens, places = view.tokens, view.positions.expand(view.tokens.shape)
    count, pattern = tokens.shape[1], view.attention
    if view.cache is not None:
        assert isinstance(view.cache, TokenCache)
        view.cache.tokens.scatter_(1, view.cache.slots, tokens)
        view.cache.places.scatter_(1, view.cache.slots, places)
        tokens, places = view.cache.tokens, view.cache.places
        pattern = view.cache.causal() if pattern is Attention.CAUSAL else pattern
        assert isinstance(pattern, Tensor)
        tokens, places = tokens[:, : pattern.shape[-1]], places[:, : pattern.shape[-1]]
    if pattern is Attention.FULL:
        pattern = torch.ones(1, count, count, dtype=torch.bool)
    elif pattern is Attention.CAUSAL:
        pattern = torch.ones(1, count, count, dtype=torch.bool).tril()
    elif isinstance(pattern, Pattern):
        pattern = pattern.dense(tokens.device)
    return tokens, places, pattern.expand(len(tokens), -1, -1)


def _at(places: Tensor) -> Tensor:
    """[B, K] places -> [B, K, 27]: what each text holds there; -1 outside the text."""
    inside = (places >= 0) & (places < L)
    return torch.where(inside[..., None], TEXTS.T[places.clamp(0, L - 1)], -1)


def _conditional(weight: Tensor, places: Tensor) -> Tensor:
    """[B, Q, 27] weights of texts -> log-probabilities [B, Q, V] of the token at each query's place."""
    held = torch.nn.functional.one_hot(TEXTS.T, V).to(weight.dtype)[places.clamp(max=L - 1)]  # [B, Q, 27, V]
    total = torch.einsum("bqx,bqxv->bqv", weight, held)
    # A view that no text explains may be answered with anything.
    total = torch.where(total.sum(-1, keepdim=True) > 0, total, 1.0)
    return (total / total.sum(-1, keepdim=True)).log()
