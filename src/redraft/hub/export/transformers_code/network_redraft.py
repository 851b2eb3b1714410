"""The network of an exported redraft model: one transformer with two kinds of block.

dit    LayerNorm, adaLN modulation by the noise level, GELU MLP with biases
llama  RMSNorm, SwiGLU, no biases, no time
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache

from .configuration_redraft import RedraftConfig


def wide(x: Tensor) -> Tensor:
    """In float32 at least: where logs and squares are summed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class LayerNorm(nn.Module):
    """Scale without bias, in float32 at least."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(wide(x), self.weight.shape, wide(self.weight), eps=1e-5).to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) times a scale, in float32 at least."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(wide(x), self.weight.shape, wide(self.weight), eps=1e-5).to(x.dtype)


class GELU(nn.Module):
    """W2 gelu(W1 x + b1) + b2."""

    def __init__(self, config: RedraftConfig):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """W3 (silu(W1 x) * W2 x)."""

    def __init__(self, config: RedraftConfig):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class NoiseLevel(nn.Module):
    """sigma [B, 1] -> conditioning [B, c]: 256 sinusoids, a two-layer MLP, and an outer SiLU."""

    def __init__(self, cond: int):
        super().__init__()
        self.first, self.second = nn.Linear(256, cond), nn.Linear(cond, cond)

    def forward(self, sigma: Tensor) -> Tensor:
        dtype = torch.promote_types(self.first.weight.dtype, torch.float32)
        frequencies = torch.exp(-math.log(10000) / 128 * torch.arange(128, device=sigma.device, dtype=dtype))
        angles = sigma.to(dtype) * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], -1).to(self.first.weight.dtype)
        return F.silu(self.second(F.silu(self.first(waves))))


def rotary(positions: Tensor, head: int, dtype: torch.dtype, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin [B or 1, 1, Q, D/2] of RoPE with a `base`: all of the head, half-split pairs."""
    wider = torch.promote_types(dtype, torch.float32)
    inverse = base ** (-torch.arange(0, head, 2, device=positions.device, dtype=wider) / head)
    angles = positions[:, None, :, None].to(wider) * inverse
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """[B, h, Q, D] queries or keys turned by their positions."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * rope[0] - b * rope[1], b * rope[0] + a * rope[1]], -1)


class Block(nn.Module):
    """Pre-norm attention and MLP, each modulated by (shift, scale, gate) where there is adaLN."""

    def __init__(self, config: RedraftConfig, layer: int):
        super().__init__()
        norm, mlp = (LayerNorm, GELU) if config.block == "dit" else (RMSNorm, SwiGLU)
        width = config.hidden_size
        self.layer, self.heads = layer, config.num_attention_heads
        self.norm1, self.norm2 = norm(width), norm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.mlp = mlp(config)
        self.modulation = nn.Linear(config.cond_size, 6 * width) if config.cond_size else None

    def forward(
        self, h: Tensor, cond: Tensor | None, rope: tuple[Tensor, Tensor], pattern: Tensor | None, cache: Cache | None
    ) -> Tensor:
        if self.modulation is None:
            h = h + self.attention(self.norm1(h), rope, pattern, cache)
            return h + self.mlp(self.norm2(h))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond)[:, None].chunk(6, -1)
        h = h + gate1 * self.attention(shift1 + self.norm1(h) * (1 + scale1), rope, pattern, cache)
        return h + gate2 * self.mlp(shift2 + self.norm2(h) * (1 + scale2))

    def attention(self, x: Tensor, rope: tuple[Tensor, Tensor], pattern: Tensor | None, cache: Cache | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if pattern is None else pattern[:, None])
        return self.out(mixed.transpose(1, 2).flatten(2))


class Trunk(nn.Module):
    """Tokens [B, Q] at `positions` [B or 1, Q] -> hidden [B, Q, d]. `pattern` [B or 1, Q, K] bool: who looks at whom."""

    def __init__(self, config: RedraftConfig):
        super().__init__()
        self.head, self.base = config.hidden_size // config.num_attention_heads, config.rotary_base
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.time = NoiseLevel(config.cond_size) if config.cond_size else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = LayerNorm(config.hidden_size) if config.block == "dit" else RMSNorm(config.hidden_size)
        self.modulation = nn.Linear(config.cond_size, 2 * config.hidden_size) if config.cond_size else None

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        pattern: Tensor | None = None,
        sigma: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        h = self.embedding(tokens)
        rope = rotary(positions, self.head, h.dtype, self.base)
        cond = None
        if self.time is not None:
            cond = self.time(h.new_zeros(1, 1) if sigma is None else sigma)
        for block in self.blocks:
            h = block(h, cond, rope, pattern, cache)
        h = self.norm(h)
        if self.modulation is not None:
            shift, scale = self.modulation(cond)[:, None].chunk(2, -1)
            h = shift + h * (1 + scale)
        return h
