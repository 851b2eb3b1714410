"""Rotary positions and attention: SDPA for every pattern, over the view's own keys or a cache's."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.network.cache import KVCache
from redraft.network.head import wide
from redraft.types import Attention, View


def rotary(positions: Tensor, head: int, dtype: torch.dtype, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin [B or 1, 1, Q, D/2] of RoPE: base `theta`, all of the head, half-split pairs; angles in float32 at least."""
    inverse = theta ** (-torch.arange(0, head, 2, device=positions.device, dtype=wide(dtype)) / head)
    angles = positions[:, None, :, None].to(inverse.dtype) * inverse
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """[B, h, Q, D] queries or keys turned by their positions."""
    cos, sin = turn
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def additive(view: View, dtype: torch.dtype) -> View:
    """A pattern as what attention adds to its scores, 0 or -inf, made once and kept once for all layers."""
    if not isinstance(view.attention, Tensor):
        return view
    scores = torch.zeros_like(view.attention, dtype=dtype).masked_fill_(~view.attention, -torch.inf)
    return replace(view, attention=scores)


def attend(q: Tensor, k: Tensor, v: Tensor, turn: tuple[Tensor, Tensor], view: View, layer: int) -> Tensor:
    """[B, h, Q, D] mixed values. Scale 1/sqrt(D)."""
    q, k = rotate(q, turn), rotate(k, turn)
    pattern = view.attention
    if view.cache is not None:
        assert isinstance(view.cache, KVCache)
        k, v, pattern = view.cache.write(layer, k, v, pattern)
        k, v = k.to(q.dtype), v.to(q.dtype)
    if isinstance(pattern, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=pattern[:, None])
    return F.scaled_dot_product_attention(q, k, v, is_causal=pattern is Attention.CAUSAL)
