"""Work that needs every logit of a row, a few rows at a time, so that [B, L, V] never exists."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits alive at once: on a CPU 8 MB of float32, near the cores' caches (measured); elsewhere larger chunks (not measured).
CHUNK_LOGITS = {"cpu": 1 << 21}
CHUNK_LOGITS_ELSEWHERE = 1 << 26


def chunk_rows(vocab: int, device: torch.device) -> int:
    return max(1, CHUNK_LOGITS.get(device.type, CHUNK_LOGITS_ELSEWHERE) // vocab)


def by_rows(charge: Callable[..., Tensor], vocab: int, hidden: Tensor, *others: Tensor) -> Tensor:
    """`charge(rows [R, d], *[R]) -> [R]` over hidden [B, L, d] and others [B, L] -> [B, L].

    With gradients, each chunk's logits are made again in the backward pass instead of kept.
    """
    flat = [part.flatten(0, 1) for part in (hidden, *others)]
    rows = chunk_rows(vocab, hidden.device)
    if len(flat[0]) <= rows:
        return charge(*flat).view(hidden.shape[:2])
    chunks = zip(*(part.split(rows) for part in flat), strict=True)
    if torch.is_grad_enabled():
        done = [checkpoint(charge, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    else:
        done = [charge(*chunk) for chunk in chunks]
    return torch.cat(done).view(hidden.shape[:2])
