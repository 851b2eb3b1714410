"""The types that packages share: Batch, View, TokenLoss, Canvas. Importing them loads no torch.

Convention, stated once: t = 0 is text, t = 1 is noise; losses are nats per token; budgets are FLOPs.
Shapes: B rows, L tokens, Q queries, K keys, R selected rows, V text ids, d width.
Ids 0..V-1 are text. Id V is the one spare id of every network: [MASK] to the masked families, BOS to the
left-to-right one, unused by the uniform one. A family never needs both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Attention(Enum):
    """Attention masks by name. Any other mask is a `Pattern`, or a bool tensor [B or 1, Q, K] (True: may look)."""

    FULL = "full"
    CAUSAL = "causal"


@dataclass(frozen=True)
class Pattern:
    """An attention mask by a rule: `sees(row, query, key)` of numbers that broadcast -> bool. For `shape` (B or 1, Q, K).

    `kept`: the rule depends on no text, so what is made of it can serve again; equal rules are then one object.
    """

    sees: Callable[[Tensor, Tensor, Tensor], Tensor]
    shape: tuple[int, int, int]
    kept: bool = False

    def dense(self, device: Any) -> Tensor:
        """[B or 1, Q, K] bool."""
        import torch

        rows, queries, keys = (torch.arange(size, device=device) for size in self.shape)
        return self.sees(rows[:, None, None], queries[:, None], keys).expand(self.shape)


@dataclass(frozen=True)
class Batch:
    """What a family is trained on and scored on."""

    tokens: Tensor  # [B, L] text ids
    scored: Tensor  # [B, L] bool: may be corrupted, and is paid for
    index: Tensor  # [B] global sample numbers: all randomness of a row is a function of (key, its index)
    lengths: Tensor | None = None  # [B] tokens of each row, those after are padding; None: every row is whole
    # [B, L] each token's document in its row, which alone it looks at; None: all look at all
    documents: Tensor | None = None
    # [R] where the scored tokens are in the flat batch, if the host knows; else it waits for the device to find them
    places: Tensor | None = None


@dataclass(frozen=True)
class SoftEmbedding:
    """A weighted sum of embeddings in the place of each token's own. The weights need not add up to one."""

    weights: Tensor  # [B, Q, k]
    ids: Tensor | None  # [B, Q, k]; None: all V text ids, in order


@dataclass(frozen=True)
class Dropout:
    """Which channels of what each block's attention and MLP add are kept, bool [B, Q, d] each, when a share `rate` is not."""

    rate: float
    keep: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class View:
    """All that a network may see: the only thing that passes from families to networks."""

    tokens: Tensor  # [B, Q] ids
    positions: Tensor  # [B or 1, Q] places in the text; [1, Q] of a causal view: in the order of the text
    attention: Attention | Tensor | Pattern = Attention.FULL
    sigma: Tensor | None = None  # [B, 1] noise level -log alpha_t; None for a family without a clock
    cache: Cache | None = None
    soft: SoftEmbedding | None = None  # embedded instead of `tokens`
    lengths: Tensor | None = None  # [B]: tokens at positions from there on are padding, which nobody looks at
    # hidden states of each place are those of the place before it (the first keeps its own): of networks that were
    # autoregressive, whose predictions stand one place earlier
    shifted: bool = False
    static: bool = False  # of a view with a cache: all calls for the text have these shapes, so it may be compiled
    dropout: Dropout | None = None  # in training alone


@dataclass(frozen=True)
class TokenLoss:
    """Nats by token. Sum and count stay apart, so that a mean is over the *global* count."""

    nats: Tensor  # [B, L], zero where not scored
    scored: Tensor  # [B, L] bool

    def mean(self) -> Tensor:
        return self.nats.sum() / self.scored.sum()


@dataclass(frozen=True)
class Canvas:
    """What samplers rewrite: prompting, infilling and continuation are one thing."""

    tokens: Tensor  # [B, L]
    fixed: Tensor  # [B, L] bool: never rewritten
    index: Tensor | None = (
        None  # [B] sample numbers, on the CPU; None: 0, 1, ... All randomness of a row depends on its own
    )

    def write(self, new: Tensor) -> Canvas:
        """The canvas with `new` tokens everywhere but where it is fixed."""
        return replace(self, tokens=self.tokens.where(self.fixed, new))

    def put(self, places: Tensor, new: Tensor) -> Canvas:
        """The canvas with `new` tokens [R] at flat `places` [R], none of which is fixed."""
        return replace(self, tokens=self.tokens.flatten().index_copy(0, places, new).view_as(self.tokens))


def last(frames: Iterator[Canvas]) -> Canvas:
    """The finished canvas of a sampler's frames."""
    canvas = next(frames)
    for later in frames:
        canvas = later
    return canvas


class Cache(Protocol):
    """A KV cache, indexed by slot. A sampler makes it and decides which token is stored in which slot.

    The pattern of a view with a cache is over its first slots, [B, Q, K] for as many as are looked at.
    """

    def at(self, slots: Tensor, run: slice | None = None) -> Cache:
        """The same memory, with the coming view's tokens assigned to `slots` [B, Q]; `run`: those slots, where every row has
        the same consecutive ones."""
        ...

    def causal(self) -> Tensor:
        """[B, Q, S] bool: each query sees the slots up to its own."""
        ...


class Network(Protocol):
    """`trunk`, `head` and their fusion with a loss, so that a [B, L, V] tensor is made only where a family needs it."""

    def trunk(self, view: View) -> Tensor:
        """[B, Q, d] hidden states."""
        ...

    def head(self, rows: Tensor) -> Tensor:
        """[R, d] -> [R, V] logits."""
        ...

    def nats(self, rows: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """[R, d], [R] ids -> [R] cross-entropy of softmax(head(rows)), the logits never whole; times `weights` [R], which
        are needed here because the gradient is computed in the forward pass."""
        ...

    def by_rule(self, rule: Callable[..., Tensor], rows: Tensor, *others: Tensor, fuse: bool = True) -> Tensor:
        """`rule(logits [r, V], *others [r, ...]) -> nats [r]` of rows [R, d], the logits never whole: nats [R]. Only the rows
        and the weights are differentiated. `fuse`: a rule that is a function of its module may be compiled."""
        ...

    def cache(self, rows: int, size: int) -> Cache:
        """An empty memory of `size` slots for each of `rows` rows."""
        ...


Noise = Callable[[str], "Tensor"]
"""A field of uniforms: a purpose -> float64 [B, L] in [0, 1), independent between purposes."""


class Predict(Protocol):
    """A lazy prediction of the clean text: the network runs when it is first asked, and only the rows asked for are headed.

    `places` [R] are positions in the flat canvas, row * L + place.
    """

    def __call__(self, places: Tensor) -> Tensor:
        """log p(x0 | view), [R, V]."""
        ...

    def draw(self, places: Tensor, u: Tensor) -> Tensor:
        """Ids [R] drawn from it, one uniform [R] each: never [R, V] at once."""
        ...

    def best(self, places: Tensor) -> Tensor:
        """The likeliest ids [R]."""
        ...

    def each(self, function: Callable[..., Tensor], places: Tensor, *others: Tensor) -> Tensor:
        """`function(log p [r, V], *others [r])` of a few rows at a time, joined: [R, ...]."""
        ...
