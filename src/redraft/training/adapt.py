"""Adaptation of an autoregressive network to diffusion (DiffuLLaMA, arXiv:2410.17891): a row for [MASK], and attention that
opens by and by. (Predictions that stand one place earlier are the family's option `shift`.)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.config import AdaptConfig
from redraft.network.padding import rule
from redraft.network.wrapped import Wrapped
from redraft.noise.counter_rng import Key, uniform
from redraft.types import Attention, Network, Pattern, View


def adapted(weights: Mapping[str, Tensor], config: AdaptConfig) -> dict[str, Tensor]:
    """The weights to start from: with `mask` "mean" the spare row, BOS till now, is the mean of the text ids' embeddings."""
    out = dict(weights)
    if config.mask == "mean":
        embedding = out["embedding"].detach()
        out["embedding"] = torch.cat([embedding[:-1], embedding[:-1].mean(0, keepdim=True)])
    return out


def opening(network: Network, config: AdaptConfig | None, progress: float, key: Key) -> Network:
    """The network, which looks ahead along a share progress / `open` of the pairs of places, drawn anew for every step, until
    all are open (arXiv:2410.17891, section 3.3)."""
    if config is None or progress >= config.open:
        return network
    return Opening(network, progress / config.open, key.fold_in("open", round(progress * 2**40)))


@dataclass(frozen=True)
class Opening(Wrapped):
    """A network in which a place looks at later ones along a `share` of all pairs alone. The draw is one for all rows, and a
    function of the key and the two places."""

    network: Network
    share: float
    key: Key

    def trunk(self, view: View) -> Tensor:
        if view.attention is Attention.CAUSAL and len(view.positions) == 1:
            return self.network.trunk(view)  # in the order of the text: nobody looks ahead
        place, base = view.positions, rule(view.attention)
        span = torch.arange(int(place.max()) + 1, device=place.device)
        seen = (uniform(self.key, span[:, None], span) < self.share) | (span <= span[:, None])
        every = len(place) == 1

        def sees(b: Tensor, q: Tensor, k: Tensor) -> Tensor:
            row = b * 0 if every else b
            return base(b, q, k) & seen[place[row, q], place[row, k]]

        rows = 1 if every and _shared(view) else len(view.tokens)
        return self.network.trunk(replace(view, attention=Pattern(sees, (rows, *2 * place.shape[1:]))))


def _shared(view: View) -> bool:
    """Whether the view's own pattern is one for all rows."""
    if isinstance(view.attention, Pattern):
        return view.attention.shape[0] == 1
    return isinstance(view.attention, Attention) or len(view.attention) == 1
