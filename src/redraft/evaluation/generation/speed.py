"""Cost of generating samples: time, forward passes, FLOPs and memory.

Counting. Tokens are those written on the canvas, end-of-document included; unconditional rows have no prompt. A pass is one
call of the trunk. FLOPs are the forward pass by the ledger's groups (`network/flops.py`, full: matrices, attention scores,
modulation, head), for the tokens, keys and rows that really went through: a cached key costs only its scores, a row that is
not headed no head. A causal mask saves nothing, as in the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.evaluation.compute import wait
from redraft.evaluation.generation.memory import forget_peak, peak_bytes
from redraft.hub.model import Model
from redraft.network.flops import forward_flops
from redraft.network.kv_cache import KVCache
from redraft.network.transformer import Transformer
from redraft.network.wrapped import Wrapped
from redraft.types import Attention, Network, Pattern, View, last


@dataclass(frozen=True)
class Generated:
    """Token rows [n, L] made in batches of `batch`, the model already loaded and warm; sampling operations included."""

    tokens: Tensor
    batch: int
    seconds: tuple[float, ...]  # of each batch: the latency of its rows
    forwards: float  # trunk passes of one batch, mean
    flops: float  # forward FLOPs of all batches
    peak_bytes: int | None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens.numel() / sum(self.seconds)

    @property
    def tokens_per_forward(self) -> float:
        """Tokens of one row that a pass writes, on average: 1 for left to right, at most L."""
        return self.tokens.shape[1] / self.forwards

    @property
    def flops_per_token(self) -> float:
        return self.flops / self.tokens.numel()

    def latency(self, quantile: float) -> float:
        """Seconds from the empty canvas to a finished batch; of one batch, every quantile is that one's."""
        return float(torch.tensor(self.seconds, dtype=torch.float64).quantile(quantile))


class Metered(Wrapped):
    """A network that adds up the forward FLOPs of what passes through it."""

    def __init__(self, network: Network):
        assert isinstance(network, Transformer)
        self.network, self.flops = network, 0.0
        self.each = forward_flops(network.shape, 1)  # a token, a (token, key) pair, a row, a sequence

    def trunk(self, view: View) -> Tensor:
        rows, queries = view.tokens.shape
        self.flops += rows * queries * (self.each["blocks"] + _keys(view) * self.each["attention"])
        self.flops += rows * self.each.get("modulation", 0.0)
        return self.network.trunk(view)

    def head(self, rows: Tensor) -> Tensor:
        self.flops += rows[..., 0].numel() * self.each["head"]
        return self.network.head(rows)

    def nats(self, rows: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        self.flops += len(targets) * self.each["head"]
        return self.network.nats(rows, targets, weights)

    def by_rule(self, rule: Callable[..., Tensor], rows: Tensor, *others: Tensor, fuse: bool = True) -> Tensor:
        self.flops += len(rows) * self.each["head"]
        return self.network.by_rule(rule, rows, *others, fuse=fuse)


def _keys(view: View) -> int:
    """How many keys each query of a view is scored against."""
    if isinstance(view.attention, Tensor | Pattern):
        return view.attention.shape[-1]
    if view.attention is Attention.CAUSAL and isinstance(view.cache, KVCache):
        return view.cache.run.stop if view.cache.run else view.cache.size
    return view.tokens.shape[1]


def generate(
    model: Model,
    batches: int,
    batch: int,
    length: int,
    steps: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    compiled: bool = False,
) -> Generated:
    """`batches` x `batch` unconditional rows of `length` tokens, each batch timed from the empty canvas to the finished one.

    A warm-up comes first: a short one, or where the network is `compiled` one of the full length, for compiling is for one
    shape. Batch i has seed i: the rows of one batch are the same whatever the others.
    """
    denoiser, canvas = model.denoiser(temperature, top_p, compiled), model.canvas("", batch, length)
    warm = canvas if compiled else model.canvas("", batch, min(length, 8))
    last(model.frames(warm, denoiser, "", 2, 0))
    meter = Metered(denoiser.network)
    denoiser.network, denoiser.calls = meter, 0
    made, seconds = [], []
    forget_peak(model.device)
    for number in range(batches):
        wait(model.device)
        began = time.perf_counter()
        made.append(last(model.frames(canvas, denoiser, "", steps, number)).tokens)
        wait(model.device)
        seconds.append(time.perf_counter() - began)
    peak, tokens = peak_bytes(model.device), torch.cat(made).cpu()
    return Generated(tokens, batch, tuple(seconds), denoiser.calls / batches, meter.flops, peak)
