"""Wrappers of a network that change how it reads or count its calls, and forward everything else."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from redraft.types import Cache, Network, View


class Wrapped:
    """Forwards everything to `network`."""

    network: Network

    def trunk(self, view: View) -> Tensor:
        return self.network.trunk(view)

    def head(self, rows: Tensor) -> Tensor:
        return self.network.head(rows)

    def nats(self, rows: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.network.nats(rows, targets, weights)

    def by_rule(self, rule: Callable[..., Tensor], rows: Tensor, *others: Tensor, fuse: bool = True) -> Tensor:
        return self.network.by_rule(rule, rows, *others, fuse=fuse)

    def cache(self, rows: int, size: int) -> Cache:
        return self.network.cache(rows, size)
