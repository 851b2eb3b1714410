"""Attention with any mask (`pattern`), over the view's own keys or a KV cache's.

A pattern is FULL, CAUSAL, a bool tensor, or a rule (`types.Pattern`). SDPA takes the first two as they are and any other as a
dense mask; on a GPU a rule becomes FlexAttention's block mask (arXiv:2412.05496), which skips the blocks that nobody looks at.
FlexAttention has no backward pass on a CPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from redraft.accelerator import accelerated
from redraft.network.kv_cache import LayerCache, PoolLayer
from redraft.network.rope import Rope, rotate
from redraft.types import Attention, Pattern

NARROWEST = 16  # width of a head that FlexAttention's kernels take


def prepared(pattern: Attention | Tensor | Pattern, device: torch.device, dtype: torch.dtype, head: int) -> Any:
    """The attention mask as `attend` takes it, made once for all layers: FULL, CAUSAL, a block mask, or an additive mask of
    0 and -inf in `dtype`. `head`: the head dimension."""
    if isinstance(pattern, Attention):
        return pattern
    if isinstance(pattern, Pattern):
        if accelerated(device) and head >= NARROWEST:
            return _kept_block_mask(pattern, device) if pattern.kept else block_mask(pattern, device)
        pattern = _kept_dense(pattern, device) if pattern.kept else pattern.dense(device)
    return torch.zeros_like(pattern, dtype=dtype).masked_fill_(~pattern, -torch.inf)


def block_mask(pattern: Pattern, device: torch.device) -> BlockMask:
    """FlexAttention's, from the same rule as the dense one."""
    rows, queries, keys = pattern.shape
    return create_block_mask(
        lambda b, h, q, k: pattern.sees(b, q, k), None if rows == 1 else rows, None, queries, keys, device=str(device)
    )


@lru_cache(maxsize=16)
def _kept_block_mask(pattern: Pattern, device: torch.device) -> BlockMask:
    return block_mask(pattern, device)


@lru_cache(maxsize=16)
def _kept_dense(pattern: Pattern, device: torch.device) -> Tensor:
    return pattern.dense(device)


def attend(q: Tensor, k: Tensor, v: Tensor, rope: Rope, pattern: Any, cache: LayerCache | PoolLayer | None) -> Tensor:
    """[B, h, Q, D] mixed values. Scale 1/sqrt(D). `pattern` as `prepared` made it. Keys and values may have fewer heads:
    each then serves as many heads of queries in a row."""
    q, k = rotate(q, rope), rotate(k, rope)
    if cache is not None:
        seen = pattern.shape[-1] if isinstance(pattern, Tensor) else cache.run and cache.run.stop
        k, v = (part[:, :, :seen].to(q.dtype) for part in cache.write(k, v))
    if isinstance(pattern, BlockMask):
        return _flex(q, k, v, pattern)
    grouped = q.shape[1] != k.shape[1]
    if isinstance(pattern, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=pattern[:, None], enable_gqa=grouped)
    return F.scaled_dot_product_attention(q, k, v, is_causal=pattern is Attention.CAUSAL, enable_gqa=grouped)


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Compiled with the enclosing block if that is compiled, else by itself: eager FlexAttention materialises all scores."""
    run = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    return run(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


@lru_cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention)
