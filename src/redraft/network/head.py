"""Cross-entropy straight from hidden states: the logits exist a chunk of rows at a time, and are made once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits alive at once. On a CPU they stay near the caches (measured); elsewhere few large products beat many small ones
# (not measured).
CHUNK_LOGITS = {"cpu": 1 << 22}
CHUNK_LOGITS_ELSEWHERE = 1 << 27
FEW_ROWS = 8  # up to which the turned product is the faster one (measured)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Where logs are summed: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def logits(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """weight rows + bias: [R, d], [V, d], [V] or None -> [R, V], in the dtype of `rows`.

    Samplers ask for a few rows of many logits. As (weight rows^T)^T the tall matrix is read once and by all threads of a
    CPU, twice as fast; a single row goes in twice, for a product with a vector has one thread.
    """
    low, low_bias = _cast(rows.dtype, weight, bias)
    if len(rows) > FEW_ROWS or rows.device.type != "cpu":
        return F.linear(rows, low, low_bias)
    pair = rows.repeat(2, 1) if len(rows) == 1 else rows
    product = (low @ pair.T).T[: len(rows)]
    return product if low_bias is None else product + low_bias


@torch.compiler.disable
def cross_entropy(
    rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, charges: Tensor | None = None
) -> Tensor:
    """-log softmax(weight rows + bias)[target]: [R, d], [V, d], [V] or None, [R] ids -> nats [R], times `charges` [R].

    The matrices multiply in the dtype of `rows`; logs are summed in float32 at least, as the nats are returned.

    When it will be differentiated, the forward pass also makes the gradients of the *sum* of what it returns while a chunk's
    logits are there: three products with the weight matrix in all, as if the logits had been kept. The backward pass
    scales them, for a mean weighs every row alike. Rows weighed differently afterwards (rows that are not paid for) cost a
    second sweep for the gradient of the weights, and are as exact; weights known before (a bound's) belong in `charges`.
    """
    learning = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (rows, weight, bias))
    charges = None if charges is None else charges.detach().to(wide(rows.dtype))
    return _Chunked.apply(rows, weight, bias, targets, learning, charges)


def _log_p(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of rows, and their log-probabilities [chunk, V]."""
    step = max(1, CHUNK_LOGITS.get(rows.device.type, CHUNK_LOGITS_ELSEWHERE) // len(weight))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        yield part, F.linear(rows[part], weight, bias).log_softmax(-1, dtype=wide(rows.dtype))


def _error(log_p: Tensor, targets: Tensor) -> Tensor:
    """d nats / d logits = p - onehot(target), in the place of log p."""
    return log_p.exp_().scatter_add_(1, targets[:, None], log_p.new_full((len(log_p), 1), -1.0))


class _WeightGradient:
    """Sums error^T rows (and the errors, for the bias) over chunks, in the weight's own format."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)

    def add(self, error: Tensor, rows: Tensor) -> None:
        if self.bias is not None:
            self.bias += error.sum(0)
        low = error.to(rows.dtype)
        if rows.dtype == self.weight.dtype:
            torch.addmm(self.weight, low.T, rows, out=self.weight)
        else:
            self.weight += low.T @ rows


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        learning: bool,
        charges: Tensor | None,
    ) -> Tensor:
        low, low_bias = _cast(rows.dtype, weight, bias)
        nats = rows.new_empty(len(rows), dtype=wide(rows.dtype))
        if not learning:
            for part, log_p in _log_p(rows, low, low_bias):
                nats[part] = -log_p.gather(-1, targets[part, None])[:, 0]
            return nats if charges is None else nats * charges
        grad_rows, total = torch.empty_like(rows), _WeightGradient(weight, bias)
        for part, log_p in _log_p(rows, low, low_bias):
            nats[part] = -log_p.gather(-1, targets[part, None])[:, 0]
            error = _error(log_p, targets[part])
            if charges is not None:
                error *= charges[part, None]
            torch.mm(error.to(rows.dtype), low, out=grad_rows[part])
            total.add(error, rows[part])
        ctx.save_for_backward(rows, weight, bias, targets, grad_rows, total.weight, total.bias, charges)
        return nats if charges is None else nats * charges

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, targets, grad_rows, grad_weight, grad_bias, charges = ctx.saved_tensors
        charge = upstream[0]
        grad_rows = (grad_rows * charge[:, None]).to(rows.dtype)
        if len(charge) and bool((charge == charge[0]).all()):
            scaled = grad_weight * charge[0], None if bias is None else grad_bias * charge[0]
            return grad_rows, *scaled, None, None, None
        charge = charge if charges is None else charge * charges
        total = _WeightGradient(weight, bias)
        for part, log_p in _log_p(rows, *_cast(rows.dtype, weight, bias)):
            total.add(_error(log_p, targets[part]).mul_(charge[part, None]), rows[part])
        return grad_rows, total.weight, total.bias, None, None, None


def _cast(dtype: torch.dtype, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.to(dtype), None if bias is None else bias.to(dtype)
