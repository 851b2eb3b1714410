"""Rows of different lengths in one batch: what comes after a row's end is padding, and nobody looks at it. Or rows of several
documents, each of which looks at itself alone.

Which keys are padding, or of another document, is read off the view's positions, so it holds for any order in which a
family puts its tokens, and for rows that hold the text twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.types import Attention, Batch, Cache, Network, View


@dataclass(frozen=True)
class Padded:
    """A network for rows of `lengths` [B] tokens: the same function of each row as if it were alone and unpadded."""

    network: Network
    lengths: Tensor

    def trunk(self, view: View) -> Tensor:
        return self.network.trunk(replace(view, lengths=self.lengths))

    def head(self, rows: Tensor) -> Tensor:
        return self.network.head(rows)

    def nats(self, rows: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.network.nats(rows, targets, weights)

    def cache(self, rows: int, size: int) -> Cache:
        return self.network.cache(rows, size)


def reading(network: Network, batch: Batch) -> Network:
    """The network that sees no padding of `batch`, and no document from another."""
    if batch.documents is not None:
        return Within(network, batch.documents)
    return network if batch.lengths is None else Padded(network, batch.lengths)


@dataclass(frozen=True)
class Within:
    """A network for rows of several documents, `documents` [B, L] numbering those of each row: the same function of each
    document as if it were alone. Positions go on from one to the next: rotary attention knows their differences only.

    What a family puts before the text (AR's BOS) it puts before the row: AR predicts the first token of a later document
    from the end of the one before it, which says no more than that. Attention takes a dense [B, L, L] pattern.
    """

    network: Network
    documents: Tensor

    def trunk(self, view: View) -> Tensor:
        assert view.cache is None, "a cache knows no positions, so it cannot tell documents apart"
        own = self.documents.gather(1, view.positions.expand(len(self.documents), -1))
        pattern = own[:, :, None] == own[:, None]
        if isinstance(view.attention, Tensor):
            pattern = pattern & view.attention
        elif view.attention is Attention.CAUSAL:
            pattern = pattern.tril()
        return self.network.trunk(replace(view, attention=pattern))

    def head(self, rows: Tensor) -> Tensor:
        return self.network.head(rows)

    def nats(self, rows: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.network.nats(rows, targets, weights)

    def cache(self, rows: int, size: int) -> Cache:
        return self.network.cache(rows, size)


def of_rows(network: Network, which: Tensor) -> Network:
    """The network for those rows [B] (bool) of its batch alone."""
    if isinstance(network, Within):
        return Within(network.network, network.documents[which])
    return Padded(network.network, network.lengths[which]) if isinstance(network, Padded) else network


def unpadded(view: View) -> View:
    """The view with its padding left out of its pattern. A padded token still sees itself, where the pattern has it, so that
    its softmax is a number; nobody reads it."""
    if view.lengths is None:
        return view
    assert view.cache is None, "a cache knows no positions, so it cannot tell padding from text"
    if view.attention is Attention.CAUSAL and bool((view.positions.diff(dim=1) > 0).all()):
        return replace(view, lengths=None)  # in the order of the text, padding comes after all who could look
    real = (view.positions < view.lengths[:, None])[:, None]
    if view.attention is Attention.FULL:
        return replace(view, attention=real, lengths=None)
    itself = torch.eye(view.tokens.shape[1], dtype=torch.bool, device=real.device)
    pattern = itself.cumsum(0).bool() if isinstance(view.attention, Attention) else view.attention
    return replace(view, attention=pattern & (real | itself), lengths=None)
