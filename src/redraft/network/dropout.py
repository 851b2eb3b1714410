"""Dropout of what attention and MLP add to the residual stream (Srivastava et al. 2014; where MDLM and Duo have it).

A channel is kept with probability 1 - rate and then divided by that, so its expectation stays. Which are kept is a function of
counters: the sample's number, the token's place in the text and its id, the block, the branch and the channel. So a loss
is the same on any number of ranks, at any accumulation and after an interruption, and a token's noise does not depend on
the other rows of its batch or on where a family puts it in the view. A network that is not wrapped drops nothing, as in
evaluation and sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.network.sizes import Shape
from redraft.network.wrapped import Wrapped
from redraft.types import Dropout, Network, View

Uniforms = Callable[..., Tensor]
"""(words, *counters) -> float64 uniforms in [0, 1) of the counters' broadcast shape: a place in a counter-based generator."""


@dataclass(frozen=True)
class Dropped(Wrapped):
    """A network of that shape whose rows, samples `index` [B], lose a share `rate` of what its blocks add."""

    network: Network
    shape: Shape
    rate: float
    index: Tensor
    uniforms: Uniforms

    def trunk(self, view: View) -> Tensor:
        positions = view.positions.expand(view.tokens.shape)
        counters = self.index[:, None, None], positions[..., None], view.tokens[..., None]
        channels = torch.arange(self.shape.width, device=view.tokens.device)

        def keep(block: int, branch: str) -> Tensor:
            return self.uniforms(("dropout", block, branch), *counters, channels) >= self.rate

        kept = tuple((keep(block, "attention"), keep(block, "mlp")) for block in range(self.shape.depth))
        return self.network.trunk(replace(view, dropout=Dropout(self.rate, kept)))


def dropped(x: Tensor, keep: Tensor | None, rate: float) -> Tensor:
    """`x` [B, Q, d] where `keep`, over 1 - rate, and 0 elsewhere; `x` itself where `keep` is None."""
    return x if keep is None else torch.where(keep, x * (1 / (1 - rate)), 0.0)
