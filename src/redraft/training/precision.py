"""The number format in which a device multiplies matrices fastest."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from redraft.network.device import DTYPES
from redraft.network.sizes import Shape


def pick_precision(name: str, shape: Shape, device: torch.device) -> str:
    """ "auto": bfloat16 on accelerators, and on CPUs where a product of this network's shape is twice as fast in it.

    Below width 256 the casts cost more than the products gain (measured on a CPU with bfloat16 units).
    """
    if name != "auto":
        return name
    if device.type != "cpu":
        return "bfloat16"
    faster = shape.width >= 256 and 2 * seconds_of_product(shape, "bfloat16", device) < seconds_of_product(
        shape, "float32", device
    )
    return "bfloat16" if faster else "float32"


def seconds_of_product(shape: Shape, dtype: str, device: torch.device) -> float:
    """Best of a few: 1024 rows through a matrix of this network's MLP, 2 x 1024 x 4 d^2 FLOPs."""
    x = torch.ones(1024, shape.width, dtype=DTYPES[dtype], device=device)
    weight = torch.ones(4 * shape.width, shape.width, dtype=DTYPES[dtype], device=device)
    return min(_timed(x, weight) for _ in range(5))


def _timed(x: torch.Tensor, weight: torch.Tensor) -> float:
    start = time.perf_counter()
    # Reading one number waits for the product on any device.
    F.linear(x, weight)[0, 0].item()
    return time.perf_counter() - start
