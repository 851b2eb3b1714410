"""The output head: logits, and cross-entropies by row computed in chunks, so that [B, L, V] is never held whole.

A loss of one row of logits is a `Rule`: cross-entropy here, the bounds of uniform noise in families/. When it will be
differentiated, the forward pass also makes the gradients of the *sum* of what it returns while a chunk's logits are there:
three products with the weight matrix in all, as if the logits had been kept (the idea of Liger's fused linear
cross-entropy, arXiv:2410.10989). The backward pass scales them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.accelerator import accelerated, fused

# Logits alive at once. On a CPU they stay near the caches (measured); elsewhere few large products beat many small ones
# (not measured). A rule that autograd differentiates keeps several numbers for each logit, so it takes fewer.
CHUNK_LOGITS = {"cpu": 1 << 22}
CHUNK_LOGITS_ELSEWHERE = 1 << 27
FEW_ROWS = 8  # up to which the turned product is the faster one (measured)

Rule = Callable[..., Tensor]
"""(logits [r, V] in float32 at least, *others [r, ...]) -> nats [r]: each row's by its own logits."""
Both = Callable[..., tuple[Tensor, Tensor]]
"""(logits [r, V] as they were multiplied, *others) -> nats [r], and their gradient [r, V] by the row's own logits."""

_summed = ContextVar("summed", default=False)


@contextmanager
def summed(promise: bool = True) -> Iterator[None]:
    """In this context the caller guarantees that row losses are only summed and scaled by one number. All rows then have one
    gradient factor in the backward pass; without this guarantee that is checked, which synchronises with the device."""
    token = _summed.set(promise)
    try:
        yield
    finally:
        _summed.reset(token)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Where logs are summed: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def chunk_rows(vocab: int, device: torch.device, logits_at_once: int = 1) -> int:
    """Rows of V logits that may be alive at once, where `logits_at_once` numbers are kept for each."""
    return max(1, CHUNK_LOGITS.get(device.type, CHUNK_LOGITS_ELSEWHERE) // (logits_at_once * vocab))


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


def cross_entropy(
    rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, charges: Tensor | None = None
) -> Tensor:
    """-log softmax(weight rows + bias)[target]: [R, d], [V, d], [V] or None, [R] ids -> nats [R], times `charges` [R].

    The matrices multiply in the dtype of `rows`; logs are summed in float32 at least, as the nats are returned.

    Rows weighed differently afterwards (rows that are not paid for) cost a second sweep for the gradient of the weights, and
    are as exact; weights known before (a bound's) belong in `charges`.
    """
    charges = None if charges is None else charges.detach().to(wide(rows.dtype))
    others = (targets,) if charges is None else (targets, charges)
    both = fused(_cross_entropy_fused) if accelerated(rows.device) else _cross_entropy
    return _apply(rows, weight, bias, _nats, both, chunk_rows(len(weight), rows.device), others)


def by_rule(
    rule: Rule, rows: Tensor, weight: Tensor, bias: Tensor | None, *others: Tensor, fuse: bool = True
) -> Tensor:
    """`rule(logits, *others)` of rows [R, d]: nats [R] in the rule's dtype, the logits in float32 at least, a chunk at a time.

    Nothing is differentiated but rows and weights. `fuse`: the rule may be compiled on a GPU; it is then a function of its
    module, not one made for the occasion.
    """
    if fuse and accelerated(rows.device):
        rule = fused(rule)
    value = lambda low, *its: rule(low.to(wide(low.dtype)), *its)

    def both(low: Tensor, *its: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = low.detach().to(wide(low.dtype)).requires_grad_()
            nats = rule(leaf, *its)
            (error,) = torch.autograd.grad(nats.sum(), leaf)
        return nats.detach(), error

    return _apply(rows, weight, bias, value, both, chunk_rows(len(weight), rows.device, 2), others)


def _nats(low: Tensor, targets: Tensor, charges: Tensor | None = None) -> Tensor:
    nats = -low.log_softmax(-1, dtype=wide(low.dtype)).gather(-1, targets[:, None])[:, 0]
    return nats if charges is None else nats * charges


def _cross_entropy(low: Tensor, targets: Tensor, charges: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """d nats / d logits = p - onehot(target), in the place of log p."""
    log_p = low.log_softmax(-1, dtype=wide(low.dtype))
    nats = -log_p.gather(-1, targets[:, None])[:, 0]
    error = log_p.exp_().scatter_add_(1, targets[:, None], log_p.new_full((len(log_p), 1), -1.0))
    return (nats, error) if charges is None else (nats * charges, error.mul_(charges[:, None]))


def _cross_entropy_fused(low: Tensor, targets: Tensor, charges: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same as a compiler fuses it: the logits are read and the error is written, in the format in which they multiply;
    what is in between stays in registers."""
    x = low.to(wide(low.dtype))
    total = x.logsumexp(-1, keepdim=True)
    nats = total[:, 0] - x.gather(-1, targets[:, None])[:, 0]
    error = (x - total).exp() - (torch.arange(low.shape[1], device=low.device) == targets[:, None]).to(x.dtype)
    if charges is not None:
        nats, error = nats * charges, error * charges[:, None]
    return nats, error.to(low.dtype)


class _WeightGradient:
    """Sums error^T rows (and the errors, for the bias) over chunks, in the weight's own format: float32 in training, in which
    a GPU also accumulates and returns each product of bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)

    def add(self, error: Tensor, low: Tensor, rows: Tensor) -> None:
        """`low`: the error in the dtype of `rows`."""
        if self.bias is not None:
            self.bias += error.sum(0, dtype=self.bias.dtype)
        if rows.dtype == self.weight.dtype:
            torch.addmm(self.weight, low.T, rows, out=self.weight)
        elif accelerated(rows.device) and self.weight.dtype == torch.float32:
            self.weight += torch.mm(low.T, rows, out_dtype=torch.float32)
        else:
            self.weight += low.T @ rows


def _apply(
    rows: Tensor, weight: Tensor, bias: Tensor | None, value: Rule, both: Both, step: int, others: tuple[Tensor, ...]
) -> Tensor:
    learning = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (rows, weight, bias))
    if not learning:
        return torch.cat([value(low, *its) for _, low, its in _chunks(rows, weight, bias, step, others)])
    return _Chunked.apply(rows, weight, bias, both, step, _summed.get(), *others)


def _chunks(
    rows: Tensor, weight: Tensor, bias: Tensor | None, step: int, others: tuple[Tensor, ...]
) -> Iterator[tuple[slice, Tensor, tuple[Tensor, ...]]]:
    """Chunks of rows (one at least), their logits [chunk, V], and what else belongs to them."""
    low, low_bias = _cast(rows.dtype, weight, bias)
    for start in range(0, max(1, len(rows)), step):
        part = slice(start, start + step)
        yield part, F.linear(rows[part], low, low_bias), tuple(other[part] for other in others)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        both: Both,
        step: int,
        promised: bool,
        *others: Tensor,
    ) -> Tensor:
        matrix, nats = weight.to(rows.dtype), list[Tensor]()
        grad_rows, total = torch.empty_like(rows), _WeightGradient(weight, bias)
        for part, logits_of, its in _chunks(rows, weight, bias, step, others):
            some, error = both(logits_of, *its)
            nats.append(some)
            low = error.to(rows.dtype)
            torch.mm(low, matrix, out=grad_rows[part])
            total.add(error, low, rows[part])
        ctx.both, ctx.step, ctx.promised = both, step, promised
        ctx.save_for_backward(rows, weight, bias, grad_rows, total.weight, total.bias, *others)
        return torch.cat(nats)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, grad_rows, grad_weight, grad_bias, *others = ctx.saved_tensors
        charge, nothing = upstream[0], (None,) * (3 + len(others))
        grad_rows = (grad_rows * charge[:, None]).to(rows.dtype)
        if len(charge) and (ctx.promised or bool((charge == charge[0]).all())):
            one = charge[0].to(weight.dtype)
            return grad_rows, grad_weight * one, None if bias is None else grad_bias * one, *nothing
        total = _WeightGradient(weight, bias)
        for part, logits_of, its in _chunks(rows, weight, bias, ctx.step, tuple(others)):
            error = ctx.both(logits_of, *its)[1] * charge[part, None].to(wide(rows.dtype))
            total.add(error, error.to(rows.dtype), rows[part])
        return grad_rows, total.weight, total.bias, *nothing


def _cast(dtype: torch.dtype, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.to(dtype), None if bias is None else bias.to(dtype)
