"""Exact likelihood of a masked model under a deterministic unmasking policy: DUEL.  Turok et al. 2026, arXiv:2603.01367.

A policy looks at a partly masked text alone, z, and says which k positions are written next. So one path leads to a text x,
and what writes tokens independently at the positions of each step generates x with

    log p(x) = sum over steps, sum over the positions l written in it, of log p(x_l | z)

z being what was revealed before. It sums to one over texts, for every policy and k, and it is a likelihood of that sampler,
not a bound: `low_confidence` in the same order, with steps = tokens / k (a whole number). Ties, as
`low_confidence` has them, go to the earlier position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.families.base import DiffusionFamily
from redraft.network.device import flat_places
from redraft.sampling.base import Denoiser, Prediction
from redraft.sampling.low_confidence import CERTAINTIES, surest_first
from redraft.types import Batch, Network

POLICIES = (*CERTAINTIES, "left_to_right")


def policy_nats(network: Network, family: DiffusionFamily, batch: Batch, policy: str, k: int = 1) -> Tensor:
    """-log p of the scored tokens given the others, float64 [B], in ceil(n / k) passes for the n of the longest row.

    `policy` is one of `POLICIES`; `k` positions a step, the last step what is left. Rows advance by themselves.
    """
    x0, hidden = batch.tokens, batch.scored
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    denoiser, any_time = Denoiser(network, family), torch.ones_like(hidden[:, :1], dtype=torch.float64)
    while hidden.any():
        belief = denoiser.belief(x0.masked_fill(hidden, family.vocab), any_time)
        now = next_positions(belief, hidden, policy, k)
        places = flat_places(now)
        paid = belief.each(true_nats, places, x0.flatten()[places])
        total = total.index_add(0, places // x0.shape[1], paid)
        hidden = hidden & ~now
    return total


def next_positions(belief: Prediction, hidden: Tensor, policy: str, k: int) -> Tensor:
    """[B, L] bool: the `k` positions of each row of `hidden` [B, L] that are written next, all where fewer are left."""
    if policy == "left_to_right":
        return hidden & (hidden.cumsum(1) <= k)
    places = flat_places(hidden)
    certainty = lambda log_p: CERTAINTIES[policy](log_p).double()
    sure = torch.full(hidden.shape, -torch.inf, dtype=torch.float64, device=hidden.device)
    sure = sure.flatten().index_copy(0, places, belief.each(certainty, places)).view_as(hidden)
    return hidden & (surest_first(sure).argsort(1) < k)


def true_nats(log_p: Tensor, x: Tensor) -> Tensor:
    """[R, V], [R] ids -> [R], float64."""
    return -log_p.gather(-1, x[:, None])[:, 0].double()
