"""One transformer with three kinds of block. Trunk and head are apart; attention, positions and time come in the `View`.

  dit    LayerNorm, adaLN modulation by the noise level, GELU MLP with biases     (arXiv:2602.15014; families of DiT)
  llama  RMSNorm, SwiGLU, no time; as `Shape` says, biases on q, k and v (Qwen2), norms on q and k (Qwen3)
                                                                                  (SMDM, arXiv:2410.18514)
  gpt2   LayerNorm and GELU MLP, biases everywhere, learned positions             (Radford et al. 2019)

Keys and values may have fewer heads than queries (grouped-query attention, arXiv:2305.13245), in the cache too.

Precision: weights, residual stream, norms and time conditioning are float32; the matrices multiply in `compute`
(float32 or bfloat16), each Linear casting its own weight; logits leave in float32. There is no autocast.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.network.attention import attend, prepared
from redraft.network.device import keep_freed_memory
from redraft.network.dropout import dropped
from redraft.network.head import Rule, by_rule, cross_entropy, logits, wide
from redraft.network.kv_cache import KVCache, LayerCache, PoolCall, PoolLayer
from redraft.network.layers import GELU, LayerNorm, Linear, RMSNorm, SwiGLU
from redraft.network.padding import unpadded
from redraft.network.rope import Rope, rotary
from redraft.network.sizes import Shape
from redraft.types import Attention, SoftEmbedding, View


class NoiseLevel(nn.Module):
    """sigma [B, 1] -> conditioning [B, c]: 256 sinusoids, a two-layer MLP, and an outer SiLU."""

    def __init__(self, cond: int, clock: float | None = None):
        super().__init__()
        self.clock = clock
        self.first, self.second = nn.Linear(256, cond), nn.Linear(cond, cond)

    def forward(self, sigma: Tensor) -> Tensor:
        if self.clock is not None:
            sigma = mixing_time(sigma, self.clock)
        places = torch.arange(128, device=sigma.device, dtype=self.first.weight.dtype)
        angles = sigma.to(places.dtype) * torch.exp(-math.log(10000) / 128 * places)
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        return F.silu(self.second(F.silu(self.first(waves))))


def mixing_time(sigma: Tensor, uniform: float) -> Tensor:
    """The time t in [0, 1] at which GIDD's mixing (arXiv:2503.04482) leaves exp(-sigma) of the text.

    exp(-sigma) = a = (1 - t) / (1 + m sqrt(t (1 - t))), m = 2 p_u / (1 - p_u): the lesser root of a quadratic in t.
    """
    gone, mixed = -torch.expm1(-sigma), (2 * uniform / (1 - uniform) * (-sigma).exp()) ** 2
    half = gone + mixed / 2
    return gone**2 / (half + (half**2 - (1 + mixed) * gone**2).clamp(min=0).sqrt()).clamp(min=1e-30)


class Block(nn.Module):
    """Pre-norm attention and MLP, each modulated by (shift, scale, gate) where the shape has adaLN."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.heads, self.keys, self.head = shape.heads, shape.keys, shape.head
        self.norm1, self.norm2 = norm_of(shape), norm_of(shape)
        self.qkv = Linear(shape.width, (shape.heads + 2 * shape.keys) * shape.head, bias=shape.qkv_biased)
        self.out = Linear(shape.heads * shape.head, shape.width, bias=shape.block == "gpt2")
        self.norm_q = RMSNorm(shape.head, shape.eps) if shape.qk_norm else None
        self.norm_k = RMSNorm(shape.head, shape.eps) if shape.qk_norm else None
        self.mlp = SwiGLU(shape) if shape.block == "llama" else GELU(shape)
        self.modulation = nn.Linear(shape.cond, 6 * shape.width) if shape.adaln else None

    def forward(
        self,
        h: Tensor,
        cond: Tensor | None,
        rope: Rope,
        pattern: Any,
        cache: LayerCache | PoolLayer | None,
        dtype: torch.dtype,
        keep: tuple[Tensor | None, Tensor | None] = (None, None),
        rate: float = 0.0,
    ) -> Tensor:
        """`keep`: of what attention and MLP add, [B, Q, d] each (network/dropout.py)."""
        if self.modulation is None:
            h = h + dropped(self.attention(self.norm1(h).to(dtype), rope, pattern, cache), keep[0], rate)
            return h + dropped(self.mlp(self.norm2(h).to(dtype)), keep[1], rate)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond)[:, None].chunk(6, -1)
        u = torch.addcmul(shift1, self.norm1(h), 1 + scale1)
        mixed = dropped(self.attention(u.to(dtype), rope, pattern, cache), keep[0], rate)
        h = torch.addcmul(h, gate1, mixed.to(h.dtype))
        u = torch.addcmul(shift2, self.norm2(h), 1 + scale2)
        return torch.addcmul(h, gate2, dropped(self.mlp(u.to(dtype)), keep[1], rate).to(h.dtype))

    def attention(self, x: Tensor, rope: Rope, pattern: Any, cache: LayerCache | PoolLayer | None) -> Tensor:
        """Rows of `qkv` are the heads of the queries, then of the keys, then of the values."""
        rows, length, _ = x.shape
        heads = self.qkv(x).view(rows, length, -1, self.head).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.keys, self.keys], 1)
        if self.norm_q is not None and self.norm_k is not None:
            q = self.norm_q(q.to(self.norm_q.weight.dtype)).to(x.dtype)
            k = self.norm_k(k.to(self.norm_k.weight.dtype)).to(x.dtype)
        mixed = attend(q, k, v, rope, pattern, cache)
        return self.out(mixed.transpose(1, 2).reshape(rows, length, self.heads * self.head))


def norm_of(shape: Shape) -> LayerNorm | RMSNorm:
    """The norm that stands before each part of a block, and after the last one."""
    if shape.block == "llama":
        return RMSNorm(shape.width, shape.eps)
    return LayerNorm(shape.width, shape.eps, bias=shape.block == "gpt2")


def moved(h: Tensor) -> Tensor:
    """[B, L, d] with each row that of the place before it; the first keeps its own."""
    return torch.cat([h[:, :1], h[:, :-1]], 1)


class Transformer(nn.Module):
    """`trunk(view)` -> hidden [B, Q, d]; `head(rows)` -> logits [R, V]; `nats(rows, targets)` fuses head and loss."""

    spare_delta: nn.Parameter | None  # [d], added to the spare row where that is trained alone (training/lora.py)

    def __init__(self, shape: Shape, compute: torch.dtype = torch.float32):
        super().__init__()
        keep_freed_memory()
        self.shape, self.compute = shape, compute
        self.embedding = nn.Parameter(torch.empty(shape.vocab + 1, shape.width))
        self.register_parameter("spare_delta", None)
        self.time = NoiseLevel(shape.cond, shape.clock) if shape.adaln else None
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.positions = nn.Parameter(torch.empty(shape.context, shape.width)) if shape.context else None
        self.norm = norm_of(shape)
        self.modulation = nn.Linear(shape.cond, 2 * shape.width) if shape.adaln else None
        self.output = None if shape.tied else Linear(shape.width, shape.vocab, bias=shape.block == "dit")

    def trunk(self, view: View) -> Tensor:
        """[B, Q, d]. The pattern is prepared first, once for all layers; what follows may be compiled as a whole."""
        view, cache, shifted = unpadded(view), view.cache, view.shifted
        pattern = view.attention
        if cache is not None and pattern is Attention.CAUSAL:
            assert isinstance(cache, KVCache)
            pattern = cache.pattern()
        h = self.hidden(view, prepared(pattern, view.tokens.device, self.compute, self.shape.head))
        return moved(h) if shifted else h

    def hidden(self, view: View, pattern: Any) -> Tensor:
        """`trunk`, by a pattern as `attention.prepared` made it."""
        cache = view.cache
        assert cache is None or isinstance(cache, KVCache | PoolCall)
        h = self.embedded(view.tokens) if view.soft is None else self.blend(view.soft)
        rope = None
        if self.positions is None:
            rope = rotary(view.positions, self.shape.head, self.compute, self.shape.theta, self.shape.scaling)
        else:  # those of padding may lie after the table
            h = h + F.embedding(view.positions.clamp(max=self.shape.context - 1), self.positions)
        cond = None
        if self.time is not None:
            cond = self.time(h.new_zeros(1, 1) if view.sigma is None else view.sigma)
        drop = view.dropout
        for number, block in enumerate(self.blocks):
            told = h, cond, rope, pattern, None if cache is None else cache.layer(number), self.compute
            h = block(*told) if drop is None else block(*told, drop.keep[number], drop.rate)
        h = self.norm(h)
        if self.modulation is not None:
            shift, scale = self.modulation(cond)[:, None].chunk(2, -1)
            h = torch.addcmul(shift, h, 1 + scale)
        return h

    def embedded(self, tokens: Tensor) -> Tensor:
        """[B, Q, d]."""
        h = F.embedding(tokens, self.embedding)
        return h if self.spare_delta is None else h + (tokens == self.shape.vocab)[..., None] * self.spare_delta

    def blend(self, soft: SoftEmbedding) -> Tensor:
        """[B, Q, d] weighted sums of embeddings, in the embedding's float32."""
        weights = soft.weights.to(self.embedding.dtype)
        if soft.ids is None:
            return weights @ self.embedding[: self.shape.vocab]
        sums = F.embedding_bag(
            soft.ids.flatten(0, 1), self.embedding, per_sample_weights=weights.flatten(0, 1), mode="sum"
        )
        return sums.unflatten(0, soft.ids.shape[:2])

    def compile_blocks(self) -> None:
        """Fuse each block with torch.compile. They share one graph, so the first call takes seconds; what gathers or
        recomputes a block may stand around it."""
        for block in self.blocks:
            block.forward = torch.compile(block.forward)

    def compile_trunk(self, graphs: bool = False) -> None:
        """Fuse the whole trunk with torch.compile; the first call of each shape takes a while. `graphs`: on a GPU its kernels
        are also replayed as one CUDA graph, so that a small batch does not wait for their launches. Calls with a cache whose
        shapes move (a prompt) stay as they were."""
        eager, fused = self.hidden, torch.compile(self.hidden, mode="reduce-overhead" if graphs else None)

        def hidden(view: View, pattern: Any) -> Tensor:
            if view.cache is not None and not view.static:
                return eager(view, pattern)
            found = fused(view, pattern)
            return found.clone() if graphs else found  # the next replay writes over what it returned

        self.hidden = hidden  # type: ignore[method-assign]

    def narrow(self) -> Transformer:
        """Keep the matrices in the format in which they multiply: the same numbers, and no cast at every call. In place, for
        inference."""
        for part in self.modules():
            if isinstance(part, Linear):
                for parameter in part.parameters():
                    parameter.data = parameter.data.to(self.compute)
        return self

    @property
    def readout(self) -> tuple[Tensor, Tensor | None]:
        """The head's matrix [V, d] and its bias: the rows of the text ids of the embedding, where that is tied."""
        if self.output is None:
            return self.embedding[: self.shape.vocab], None
        return self.output.weight, self.output.bias

    def head(self, rows: Tensor) -> Tensor:
        low = rows.to(self.compute).flatten(0, -2)
        return logits(low, *self.readout).unflatten(0, rows.shape[:-1]).to(wide(low.dtype))

    def cache(self, rows: int, size: int) -> KVCache:
        return KVCache.empty(self.shape, rows, size, self.embedding.device, self.compute)

    def nats(self, rows: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        return cross_entropy(rows.to(self.compute), *self.readout, targets, weights)

    def by_rule(self, rule: Rule, rows: Tensor, *others: Tensor, fuse: bool = True) -> Tensor:
        return by_rule(rule, rows.to(self.compute), *self.readout, *others, fuse=fuse)
