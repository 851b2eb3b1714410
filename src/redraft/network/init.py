"""Weight initialisation, as in the code of arXiv:2602.15014 (`dit`) and of SMDM, arXiv:2410.18514 (`llama`)."""

from __future__ import annotations

import math

import torch
from torch import nn

from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer


def initialised(shape: Shape, seed: int, compute: torch.dtype = torch.float32) -> Transformer:
    """A network whose weights are a function of (shape, seed) alone: drawn on the CPU, in parameter order.

    dit    embedding U(-1/sqrt d, 1/sqrt d); linears PyTorch's default; adaLN and the output layer zero, so that every
           block starts as the identity and the loss at log V.
    llama  matrices and embedding N(0, 2/5d); the two that write to the residual stream N(0, 1/(d N^2)); biases zero.
    gpt2   matrices, embedding and positions N(0, 0.02^2), divided by 2N where they write to the residual stream; biases zero
           (GPT-2's code).
    """
    network = Transformer(shape, compute)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            _draw(name, parameter, shape, generator)
    return network


def _draw(name: str, parameter: nn.Parameter, shape: Shape, generator: torch.Generator) -> None:
    owner = name.split(".")[-2] if "." in name else name
    if owner.startswith("norm"):
        parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    elif shape.block != "dit" and parameter.ndim == 1:
        parameter.zero_()
    elif shape.block == "gpt2":
        parameter.normal_(0, 0.02 / math.sqrt(2 * shape.depth if owner in ("out", "down") else 1), generator=generator)
    elif shape.block == "llama":
        residual = owner in ("out", "down")
        std = 1 / (math.sqrt(shape.width) * shape.depth) if residual else math.sqrt(2 / (5 * shape.width))
        parameter.normal_(0, std, generator=generator)
    elif owner in ("modulation", "output"):
        parameter.zero_()
    else:
        fan_in = _fan_in(name, parameter, shape)
        parameter.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)


def _fan_in(name: str, parameter: nn.Parameter, shape: Shape) -> int:
    if parameter.ndim == 2:
        return parameter.shape[1]
    return {"up": shape.width, "down": shape.hidden, "first": 256, "second": shape.cond}[name.split(".")[-2]]
