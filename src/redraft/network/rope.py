"""Rotary position embeddings (arXiv:2104.09864), and how their frequencies are scaled for longer texts.

linear   all frequencies divided by `factor`                                    (arXiv:2306.15595)
llama3   long waves divided by `factor`, short ones kept, those between mixed   (Llama 3.1)
yarn     the same by turns within the `original` length, and scores sharpened   (YaRN, arXiv:2309.00071)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from redraft.network.head import wide
from redraft.network.sizes import Scaling

Rope = tuple[Tensor, Tensor] | None
"""cos and sin, or None: nothing is turned."""


def rotary(
    positions: Tensor, head: int, dtype: torch.dtype, theta: float = 10000.0, scaling: Scaling | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin [B or 1, 1, Q, D/2] of RoPE: base `theta`, all of the head, half-split pairs; angles in float32 at least."""
    inverse = frequencies(head, theta, scaling, positions.device, wide(dtype))
    angles = positions[:, None, :, None].to(inverse.dtype) * inverse
    cos, sin = angles.cos(), angles.sin()
    if scaling is not None and (gain := scaling.gain) != 1.0:
        cos, sin = cos * gain, sin * gain
    return cos.to(dtype), sin.to(dtype)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """[B, h, Q, D] queries or keys turned by their positions."""
    if rope is None:
        return x
    cos, sin = rope
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def frequencies(head: int, theta: float, scaling: Scaling | None, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[D/2] radians a position."""
    plain = theta ** (-torch.arange(0, head, 2, device=device, dtype=dtype) / head)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    kept = _llama3(plain, scaling) if scaling.kind == "llama3" else _yarn(head, theta, scaling, device, dtype)
    return plain * kept + plain / scaling.factor * (1 - kept)


def divisors(head: int, theta: float, scaling: Scaling) -> Tensor:
    """[D/2] float64: by what each frequency is divided, as GGUF files of Llama 3 have it."""
    plain, scaled = (frequencies(head, theta, how, torch.device("cpu"), torch.float64) for how in (None, scaling))
    return plain / scaled


def _llama3(plain: Tensor, scaling: Scaling) -> Tensor:
    """Which share of each frequency stays: all of those with more than `high` waves in `original`, none below `low`."""
    waves = scaling.original * plain / (2 * math.pi)
    return ((waves - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)


def _yarn(head: int, theta: float, scaling: Scaling, device: torch.device, dtype: torch.dtype) -> Tensor:
    """1 up to the dimension that turns `fast` times within `original`, 0 from that which turns `slow` times on."""
    turning = lambda turns: head * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(theta))
    first, last = max(math.floor(turning(scaling.fast)), 0), min(math.ceil(turning(scaling.slow)), head - 1)
    places = torch.arange(head // 2, device=device, dtype=dtype)
    return 1 - ((places - first) / max(last - first, 0.001)).clamp(0, 1)
