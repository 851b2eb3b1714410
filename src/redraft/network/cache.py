"""The KV cache as an object: a sampler makes it, passes it in a `View`, and decides what goes where.

Keys are stored rotated, so nothing is done to them again. A slot is a place in *generation* order, not in the text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.network.sizes import Shape
from redraft.types import Attention


@dataclass(frozen=True)
class KVCache:
    """`store` [N, 2, B, h, S, D]; `slots` [B, Q]: where the keys and values of the coming view go.

    Attention of the coming view is over the first K slots by the view's [B, Q, K] pattern, or, when it is CAUSAL, over the
    slots up to the query's own. Writing over a slot replaces it: a [MASK] looked at once is overwritten by its token.
    `run`: the slots, where the sampler says that every row has the same consecutive ones; the slots after them are then not
    even read.
    """

    store: Tensor
    slots: Tensor
    run: slice | None = None

    @staticmethod
    def empty(shape: Shape, rows: int, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> KVCache:
        head = shape.width // shape.heads
        store = torch.zeros(shape.depth, 2, rows, shape.heads, size, head, device=device, dtype=dtype)
        return KVCache(store, torch.zeros(rows, 0, dtype=torch.int64, device=device))

    @property
    def size(self) -> int:
        return self.store.shape[4]

    def at(self, slots: Tensor, run: slice | None = None) -> KVCache:
        return replace(self, slots=slots, run=run)

    def causal(self) -> Tensor:
        return torch.arange(self.size, device=self.slots.device) <= self.slots[:, :, None]

    def write(
        self, layer: int, keys: Tensor, values: Tensor, pattern: Attention | Tensor
    ) -> tuple[Tensor, Tensor, Attention | Tensor]:
        """Put [B, h, Q, D] keys and values into their slots.

        Returns the keys and values [B, h, K, D] that the view looks at, and its pattern over them.
        """
        kept = self.store[layer]
        if pattern is Attention.CAUSAL and self.run is not None:
            kept[0, :, :, self.run], kept[1, :, :, self.run] = keys, values
            known = kept[:, :, :, : self.run.stop]
            return known[0], known[1], self._causal_so_far()
        where = self.slots[:, None, :, None].expand_as(keys)
        kept[0].scatter_(2, where, keys.to(kept.dtype))
        kept[1].scatter_(2, where, values.to(kept.dtype))
        seen = self.causal() if pattern is Attention.CAUSAL else pattern
        assert isinstance(seen, Tensor)
        width = seen.shape[-1]
        return kept[0, :, :, :width], kept[1, :, :, :width], seen

    def _causal_so_far(self) -> Attention | Tensor:
        """The causal pattern of a run over the slots up to its end: the last query sees them all."""
        assert self.run is not None
        if self.run.stop - self.run.start == 1:
            return Attention.FULL
        return Attention.CAUSAL if self.run.start == 0 else self.causal()[:, :, : self.run.stop]
