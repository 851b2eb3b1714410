"""What each region that is compiled on a GPU saves, eager less compiled: a block, a noise field, a chunk of the head.

Compiled at sizes that this CPU manages; the bytes of two numbers of tokens give those of the number asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from inductor import Count, compiled
from torch import Tensor

from redraft.families.duo import uniform_nats
from redraft.network import head
from redraft.network.attention import rotary
from redraft.network.fuse_adaln import fuse_adaln
from redraft.network.sizes import from_size
from redraft.network.transformer import Block, Transformer
from redraft.noise import counter_rng
from redraft.types import Attention

META = torch.device("meta")
TOKENS, ROWS = 512, 64  # of what is compiled
Counted = Callable[[Callable[[], Any]], Count]


class Regions:
    """`counted`: the eager count of a function on the meta device."""

    def __init__(self, vocab: int, counted: Counted):
        self.vocab, self.counted = vocab, counted
        self.shape = from_size("170M", "dit", vocab)

    @cache  # noqa: B019
    def block(self, tokens: int, training: bool, clocked: bool) -> Count:
        """Forward and backward of a training step, or forward alone with modulations folded where there is no clock."""
        made, call = self._block(training or clocked)
        few, many = (compiled(made.forward, *call(n, "cpu", training), backward=training) for n in (TOKENS, 2 * TOKENS))
        real = few + (many - few) * (tokens / TOKENS - 1)  # weights are there once
        away = made.to(META)
        arguments = call(tokens, META, training)
        eager = self.counted(lambda: self._run(away, arguments, training))
        return eager - Count(few.operations, 0, real.bytes)

    def _run(self, block: Block, arguments: tuple[Any, ...], training: bool) -> None:
        with torch.set_grad_enabled(training):
            out = block(*arguments)
            if training:
                torch.autograd.backward(out, torch.empty_like(out))

    def _block(self, modulated: bool) -> tuple[Block, Callable[..., tuple[Any, ...]]]:
        network = Transformer(type(self.shape)(**{**vars(self.shape), "depth": 1}), torch.bfloat16)
        torch.nn.init.zeros_(network.embedding)
        block = (network if modulated else fuse_adaln(network)).blocks[0]
        cond, width = self.shape.cond, self.shape.width

        def call(tokens: int, device: Any, training: bool) -> tuple[Any, ...]:
            h = torch.zeros(1, tokens, width, device=device, requires_grad=training)
            turn = rotary(torch.arange(tokens, device=device)[None], width // self.shape.heads, torch.bfloat16)
            condition = torch.zeros(1, cond, device=device) if modulated else None
            return h, condition, turn, Attention.FULL, None, torch.bfloat16

        assert isinstance(block, Block)
        return block, call

    @cache  # noqa: B019
    def hash(self, rows: int, length: int) -> Count:
        at = lambda device: (torch.zeros((), dtype=torch.int64, device=device), *_counters(rows, length, device))
        real = compiled(counter_rng._uniform, *at("cpu"), backward=False)
        arguments = at(META)
        return self.counted(lambda: counter_rng._uniform(*arguments)) - real

    @cache  # noqa: B019
    def head(self, family: str, rows: int) -> Count:
        """Of all chunks of a micro-batch. Families whose rule is not compiled here are counted eager: nothing saved."""
        if family in ("ar", "mdlm", "esolm", "bd3lm", "d3pm"):
            eager, fused, learning, at_once = head._cross_entropy, head._cross_entropy_fused, False, 1
        elif family == "duo":
            eager, fused, learning, at_once = _with_gradient(uniform_nats), uniform_nats, True, 2
        else:
            return Count()
        chunk = min(rows, head.chunk_rows(self.vocab, META, at_once))
        chunks = math.ceil(rows / chunk)
        away = self._logits(chunk, META, family)
        here = self._logits(ROWS, torch.device("cpu"), family)
        if learning:
            here = (here[0].float().requires_grad_(), *here[1:])
        real = compiled(fused, *here, backward=learning)
        saved = self.counted(lambda: eager(*away)) - Count(real.operations, 0, real.bytes * chunk / ROWS)
        return saved * chunks

    def _logits(self, rows: int, device: torch.device, family: str) -> tuple[Tensor, ...]:
        low = torch.zeros(rows, self.vocab, dtype=torch.bfloat16, device=device)
        ids = torch.zeros(rows, dtype=torch.int64, device=device)
        share = torch.full((rows,), 0.5, dtype=torch.float64, device=device)
        return (low, ids, ids, share, share) if family == "duo" else (low, ids)


def _with_gradient(rule: Callable[..., Tensor]) -> Callable[..., Any]:
    """As `head.by_rule` calls it."""

    def both(low: Tensor, *others: Tensor) -> Any:
        leaf = low.float().requires_grad_()
        return torch.autograd.grad(rule(leaf, *others).sum(), leaf)

    return both


def _counters(rows: int, length: int, device: Any) -> tuple[Tensor, Tensor]:
    return torch.arange(rows, device=device)[:, None], torch.arange(length, device=device)


@contextmanager
def hashes() -> Iterator[list[int]]:
    """A list that grows with every noise field made on the meta device."""
    made, plain = list[int](), counter_rng._uniform

    def noting(state: Tensor, *counters: Tensor) -> Tensor:
        if state.is_meta and len(counters) > 1:
            made.append(1)
        return plain(state, *counters)

    counter_rng._uniform = noting
    try:
        yield made
    finally:
        counter_rng._uniform = plain
