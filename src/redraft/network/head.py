"""Cross-entropy straight from hidden states: the logits exist a chunk of rows at a time, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_LOGITS = 1 << 21  # logits alive at once; a few MB of float32 stay near the cores' caches


def cross_entropy(rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """-log softmax(weight rows + bias)[target]: [R, d], [V, d], [V] or None, [R] ids -> float32 nats [R].

    The matrices multiply in the dtype of `rows`; logs are summed in float32. The backward pass makes each chunk's
    logits again: one more multiplication instead of R x V numbers kept.
    """
    return _Chunked.apply(rows, weight, bias, targets)


def _chunks(rows: Tensor, vocab: int) -> range:
    return range(0, len(rows), max(1, CHUNK_LOGITS // vocab))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        cast, cast_bias = weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype)
        lse, nats = rows.new_empty(len(rows), dtype=torch.float32), rows.new_empty(len(rows), dtype=torch.float32)
        step = _chunks(rows, len(weight))
        for start in step:
            part = slice(start, start + step.step)
            logits = F.linear(rows[part], cast, cast_bias).float()
            lse[part] = logits.logsumexp(-1)
            nats[part] = lse[part] - logits.gather(-1, targets[part, None])[:, 0]
        ctx.save_for_backward(rows, weight, bias, targets, lse)
        return nats

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, targets, lse = ctx.saved_tensors
        cast, cast_bias = weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype)
        grad_rows, grad_weight = torch.empty_like(rows), torch.zeros_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        step = _chunks(rows, len(weight))
        for start in step:
            part = slice(start, start + step.step)
            grad = F.linear(rows[part], cast, cast_bias).float().sub_(lse[part, None]).exp_()
            grad.scatter_add_(1, targets[part, None], grad.new_full((len(grad), 1), -1.0))
            grad.mul_(upstream[0][part, None])
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            low = grad.to(rows.dtype)
            grad_rows[part] = low @ cast
            grad_weight += low.T @ rows[part]
        return grad_rows, grad_weight, grad_bias, None
