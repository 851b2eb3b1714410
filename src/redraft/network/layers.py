"""The parts of a block: linear maps that multiply in their input's dtype, norms in float32, and the two kinds of MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft.network.sizes import Shape


class Linear(nn.Linear):
    """Multiplies in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class LayerNorm(nn.Module):
    """Scale, in float32; with a bias where it is asked for."""

    def __init__(self, width: int, eps: float = 1e-5, bias: bool = False):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) times a scale, in float32."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, eps=self.eps)


class GELU(nn.Module):
    """The MLP of "dit" and "gpt2": W2 gelu(W1 x + b1) + b2, gelu by its tanh formula."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.up = Linear(shape.width, shape.hidden)
        self.down = Linear(shape.hidden, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """The MLP of "llama": W3 (silu(W1 x) * W2 x)."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.gate = Linear(shape.width, shape.hidden, bias=False)
        self.up = Linear(shape.width, shape.hidden, bias=False)
        self.down = Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))
