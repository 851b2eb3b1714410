"""Attention masks for rows of different lengths (padding) and for several documents in a row.

Which keys are padding, or of another document, is read off the view's positions, so it holds for any order in which a
family puts its tokens, and for rows that hold the text twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from redraft.network.dropout import Dropped
from redraft.network.wrapped import Wrapped
from redraft.types import Attention, Batch, Network, Pattern, View


@dataclass(frozen=True)
class Padded(Wrapped):
    """A network for rows of `lengths` [B] tokens: the same function of each row as if it were alone and unpadded."""

    network: Network
    lengths: Tensor

    def trunk(self, view: View) -> Tensor:
        return self.network.trunk(replace(view, lengths=self.lengths))


def reading(network: Network, batch: Batch) -> Network:
    """The network that sees no padding of `batch`, and no document from another."""
    if batch.documents is not None:
        return Within(network, batch.documents)
    return network if batch.lengths is None else Padded(network, batch.lengths)


@dataclass(frozen=True)
class Within(Wrapped):
    """A network for rows of several documents, `documents` [B, L] numbering those of each row: the same function of each
    document as if it were alone. Positions go on from one to the next: rotary attention knows their differences only.

    AR's BOS stands before the row only. The first token of a later document is predicted from the end-of-document token
    before it, which attends to itself alone and so acts as a BOS.
    """

    network: Network
    documents: Tensor

    def trunk(self, view: View) -> Tensor:
        assert view.cache is None, "a cache knows no positions, so it cannot tell documents apart"
        own, base = self.documents.gather(1, view.positions.expand(len(self.documents), -1)), rule(view.attention)
        sees = lambda b, q, k: base(b, q, k) & (own[b, q] == own[b, k])
        alone = replace(view, attention=Pattern(sees, (len(own), *2 * own.shape[1:])), shifted=False)
        h = self.network.trunk(alone)
        if not view.shifted:
            return h
        first = F.pad(own[:, 1:] != own[:, :-1], (1, 0), value=True)
        return h.where(first[..., None], h.roll(1, 1))


def of_rows(network: Network, which: Tensor) -> Network:
    """The network for those rows [B] (bool) of its batch alone."""
    if isinstance(network, Within):
        return Within(of_rows(network.network, which), network.documents[which])
    if isinstance(network, Dropped):
        return replace(network, index=network.index[which])
    return Padded(of_rows(network.network, which), network.lengths[which]) if isinstance(network, Padded) else network


def unpadded(view: View) -> View:
    """The view with its padding left out of its pattern. A padded token still sees itself, where the pattern has it, so that
    its softmax is a number; nobody reads it."""
    if view.lengths is None:
        return view
    assert view.cache is None, "a cache knows no positions, so it cannot tell padding from text"
    if view.attention is Attention.CAUSAL and len(view.positions) == 1 < len(view.lengths):
        # In the order of the text, which rows share, padding comes after all who could look; one row may have another.
        return replace(view, lengths=None)
    real, base = view.positions < view.lengths[:, None], rule(view.attention)
    if view.attention is Attention.FULL:
        sees = lambda b, q, k: real[b, k]
    else:
        sees = lambda b, q, k: base(b, q, k) & (real[b, k] | (q == k))
    return replace(view, attention=Pattern(sees, (len(real), *2 * real.shape[1:])), lengths=None)


def rule(attention: Attention | Tensor | Pattern) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`types.Pattern.sees` of any pattern."""
    if isinstance(attention, Pattern):
        return attention.sees
    if isinstance(attention, Tensor):
        shared = len(attention) == 1
        return lambda b, q, k: attention[0 if shared else b, q, k]
    causal = attention is Attention.CAUSAL
    return lambda b, q, k: k <= (q if causal else k)
