"""The KV cache, an object that a sampler makes and passes in a `View`.

Keys are stored rotated, so nothing is done to them again. A slot is a place in *generation* order, not in the text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.accelerator import accelerated
from redraft.network.sizes import Shape
from redraft.types import Attention


@dataclass(frozen=True)
class LayerCache:
    """One layer's keys and values [B, h, S, D], and where those of the coming view go. See `KVCache`."""

    keys: Tensor
    values: Tensor
    slots: Tensor
    run: slice | None

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put [B, h, Q, D] into their slots. Returns all that is kept, [B, h, S, D]."""
        if self.run is not None:
            self.keys[:, :, self.run], self.values[:, :, self.run] = keys, values
            return self.keys, self.values
        rows = torch.arange(len(self.slots), device=self.slots.device)[:, None]
        self.keys[rows, :, self.slots] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[rows, :, self.slots] = values.transpose(1, 2).to(self.values.dtype)
        return self.keys, self.values


@dataclass(frozen=True)
class KVCache:
    """`keys` and `values`, a tensor [B, h, S, D] a layer; `slots` [B, Q]: where those of the coming view go.

    Attention of the coming view is over the first K slots by the view's [B, Q, K] pattern, or, when it is CAUSAL, over the
    slots up to the query's own. Writing over a slot replaces it: a [MASK] looked at once is overwritten by its token.
    `run`: the slots, where the sampler says that every row has the same consecutive ones; the slots after them are then not
    even read. A call without a run looks at a cache of one size, whatever is in it yet: such calls can share a compiled graph.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    slots: Tensor
    run: slice | None = None

    @staticmethod
    def empty(shape: Shape, rows: int, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> KVCache:
        sizes = rows, shape.keys, size, shape.head
        store = [torch.zeros(sizes, device=device, dtype=dtype) for _ in range(2 * shape.depth)]
        if accelerated(device):
            for (
                part
            ) in store:  # its address is part of a CUDA graph, as a weight's is, so it can be written to inside one
                torch._dynamo.mark_static_address(part)
        slots = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        return KVCache(tuple(store[: shape.depth]), tuple(store[shape.depth :]), slots)

    @property
    def size(self) -> int:
        return self.keys[0].shape[2]

    def at(self, slots: Tensor, run: slice | None = None) -> KVCache:
        return replace(self, slots=slots, run=run)

    def causal(self) -> Tensor:
        return torch.arange(self.size, device=self.slots.device) <= self.slots[:, :, None]

    def layer(self, number: int) -> LayerCache:
        return LayerCache(self.keys[number], self.values[number], self.slots, self.run)

    def pattern(self) -> Attention | Tensor:
        """The causal pattern over all slots, or up to the end of a run: then the last query sees them all."""
        if self.run is None:
            return self.causal()
        if self.run.stop - self.run.start == 1:
            return Attention.FULL
        return Attention.CAUSAL if self.run.start == 0 else self.causal()[:, :, : self.run.stop]
