"""The KV cache as an object: a sampler makes it, passes it in a `View`, and decides what goes where.

Keys are stored rotated, so nothing is done to them again. A slot is a place in *generation* order, not in the text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.network.sizes import Shape


@dataclass(frozen=True)
class KVCache:
    """`store` [N, 2, B, h, S, D]; `slots` [B, Q]: where the keys and values of the coming view go.

    Attention of the coming view is over slots 0..S-1 by the view's [B, Q, S] pattern, or, when it is CAUSAL, over the
    slots up to the query's own. Writing over a slot replaces it: a [MASK] looked at once is overwritten by its token.
    """

    store: Tensor
    slots: Tensor

    @staticmethod
    def empty(shape: Shape, rows: int, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> KVCache:
        head = shape.width // shape.heads
        store = torch.zeros(shape.depth, 2, rows, shape.heads, size, head, device=device, dtype=dtype)
        return KVCache(store, torch.zeros(rows, 0, dtype=torch.int64, device=device))

    @property
    def size(self) -> int:
        return self.store.shape[4]

    def at(self, slots: Tensor) -> KVCache:
        return replace(self, slots=slots)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put [B, h, Q, D] keys and values into their slots; returns all keys and values [B, h, S, D] of the layer."""
        where = self.slots[:, None, :, None].expand_as(keys)
        kept_keys, kept_values = self.store[layer]
        kept_keys.scatter_(2, where, keys.to(kept_keys.dtype))
        kept_values.scatter_(2, where, values.to(kept_values.dtype))
        return kept_keys, kept_values

    def causal(self) -> Tensor:
        return torch.arange(self.size, device=self.slots.device) <= self.slots[:, :, None]
