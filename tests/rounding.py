"""How far apart two computations of one number may lie on any processor, which adds in an order of its own.

Equalities of algebra (cached = uncached, alone = in company, fast = by definition) are shown `in_float64`, to CLOSE. Where
float32 itself is the matter, or a program computes in nothing else, the tolerance is `logits_apart`: of sizes and magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer

# Of float64: some thousand roundings of 2^-53 in a row are 10^-12 if all go the same way, and mistakes are seen from 10^-9 on.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
CONFIDENCE = 7.0


def in_float64(network: Transformer) -> Transformer:
    """The same network, from its own weights on, in place."""
    network.double().compute = torch.float64
    return network


def roundoff(dtype: torch.dtype) -> float:
    """The unit roundoff u: 2^-24 of float32, 2^-8 of bfloat16."""
    return torch.finfo(dtype).eps / 2


def of_sums(*terms: int) -> float:
    """Relative error of a chain of float32 sums or inner products, with so many `terms` each, one made of another's results.

    A sum of n terms is off by c sqrt(n) u of the sum of their sizes, with probability 1 - 2 n exp(-c^2 / 2) (Higham and Mary
    2019, theorem 2.4): c = 7 leaves 10^-8 for n = 200. In whatever order it is added: an order changes which of such errors
    it is. What one sum inherits from the sums before it adds to its own.
    """
    return CONFIDENCE * roundoff(torch.float32) * sum(map(math.sqrt, terms))


def log_mixture_off(log_p: Tensor, log_b: Tensor) -> float:
    """How far float32 is off in each log b_j of b = scale p + rest, p of K ids, all positive.

    A logit is rounded, so p_j by a factor of |log p_j| u, and divided by a sum of K terms; a sum of positive terms keeps the
    relative error, which is what a log is off by, and then it is rounded. A sum of all log b_j is off by K times as much.
    """
    sizes = 1 + float(log_p.abs().max()) + float(log_b.abs().max())
    return of_sums(log_p.shape[-1]) * sizes


def logits_apart(shape: Shape, length: int, largest: float, dtype: torch.dtype = torch.float32) -> float:
    """The most that two computations of a network's logits differ by, over rows of `length` tokens, one of them in `dtype`.

    Sums in a chain: in a block two norms, queries, scores, softmax, values and the way out, and the MLP's two; then the last
    norm and the head. Each is fed through a norm, which keeps a relative error what it is, so errors add up, to a share of
    the `largest` logit. Twice, for two computations. bfloat16 rounds both that go into each of a block's six products, and
    the head's, and what comes out, and adds up in float32. Nats are a logit less a log of a sum: twice what logits differ by.
    """
    width, head = shape.width, shape.width // shape.heads
    block = [width, width, width, head, length, length, width, width, shape.hidden]
    rounded = 0.0 if dtype == torch.float32 else 3 * roundoff(dtype) * (6 * shape.depth + 1)
    return (2 * of_sums(*shape.depth * block, width, width) + rounded) * largest


def losses_apart(shape: Shape, rows: int, length: int, losses: Sequence[float], dtype: torch.dtype) -> float:
    """The most that two trainings differ by in any of their `losses`, whose steps of `rows` are added up in other orders.

    A loss is off by a share e of itself, and a gradient off by e of itself, to first order, takes the loss that much less far:
    e of the largest loss in all. Forward and backward are a network's chain each, and then tokens are added. bfloat16 rounds
    the gradient of a matrix once more, each part of it before parts are added: 2 u of what the loss falls by.
    """
    share = 2 * logits_apart(shape, length, 1.0) + 2 * of_sums(rows * length)
    rounded = 0.0 if dtype == torch.float32 else 2 * roundoff(dtype)
    return share * max(losses) + rounded * (max(losses) - min(losses))
