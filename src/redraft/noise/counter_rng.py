"""A counter-based random number generator: a uniform is a hash of (key, counters), not the next of a stream.

So what happens to sample 12345 at position 7 is the same on any device, in any batch, on any number of ranks, at any
accumulation and after any resume. Uniforms carry 53 bits, because float32 lacks the tail that a vocabulary needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from hashlib import blake2b

import torch
from torch import Tensor

from redraft.accelerator import accelerated, fused
from redraft.types import Noise

# splitmix64 (Steele, Lea, Flood 2014), written in the wrapping signed arithmetic that torch has on every device.
_GOLDEN, _MIX1, _MIX2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_PHI = 0.6180339887498949

TOGETHER = 1 << 13  # uniforms that are drawn for steps ahead


@dataclass(frozen=True)
class Key:
    """A place in counter space. Folding words into it gives an independent place."""

    value: int

    @staticmethod
    def of(seed: int) -> Key:
        return Key(0).fold_in("seed", seed)

    def fold_in(self, *words: int | str) -> Key:
        text = ":".join([str(self.value), *(f"{type(w).__name__[0]}{w}" for w in words)])
        return Key(int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def bits(key: Key, *counters: Tensor) -> Tensor:
    """64 random bits (int64) for each combination of broadcast integer counters."""
    return _bits(_start(key, counters[0]), *counters)


def uniform(key: Key, *counters: Tensor) -> Tensor:
    """Float64 uniforms k / 2^53 in [0, 1), of the counters' broadcast shape. Some sixty operations, on an accelerator one."""
    return _fast(counters[0])(_start(key, counters[0]), *counters)


def _fast(like: Tensor) -> Callable[..., Tensor]:
    return fused(_uniform) if accelerated(like.device) else _uniform


def _start(key: Key, like: Tensor) -> Tensor:
    """The key as a tensor, filled where it is used: nothing is copied, and no key is part of a compiled graph."""
    return torch.full((), key.value, dtype=torch.int64, device=like.device)


def _bits(state: Tensor, *counters: Tensor) -> Tensor:
    for counter in counters:
        state = _mix(state + _GOLDEN + _mix(counter.long() + _GOLDEN))
    return state


def _uniform(state: Tensor, *counters: Tensor) -> Tensor:
    return _shift(_bits(state, *counters), 11).double() * 2.0**-53


def field(key: Key, index: Tensor, length: int) -> Noise:
    """purpose -> uniforms [B, L], a function of (key, purpose, sample index, position): company changes nothing.

    >>> alone = field(Key.of(0), torch.tensor([7]), 4)("corrupt")
    >>> in_company = field(Key.of(0), torch.tensor([3, 7]), 4)("corrupt")
    >>> torch.equal(alone[0], in_company[1])
    True
    """
    positions = torch.arange(length, device=index.device)
    return lambda purpose: uniform(key.fold_in(purpose), index[:, None], positions)


def fields(keys: Sequence[Key], index: Tensor, length: int) -> Iterator[Noise]:
    """`field` of each key. Those of a few keys are drawn together when the first of them is asked for a purpose, as sixty
    operations on so many numbers cost little more than on few.

    >>> first, second = fields([Key.of(0), Key.of(1)], torch.tensor([3, 7]), 4)
    >>> torch.equal(second("move"), field(Key.of(1), torch.tensor([3, 7]), 4)("move"))
    True
    """
    size = max(1, TOGETHER // max(1, len(index) * length))
    positions = torch.arange(length, device=index.device)
    for start in range(0, len(keys), size):
        some = keys[start : start + size]

        @cache
        def drawn(purpose: str, some: Sequence[Key] = some) -> Tensor:
            states = torch.tensor([key.fold_in(purpose).value for key in some], device=index.device)
            return _fast(index)(states[:, None, None], index[:, None], positions)

        yield from (partial(_one, drawn, number) for number in range(len(some)))


def _one(drawn: Callable[[str], Tensor], number: int, purpose: str) -> Tensor:
    return drawn(purpose)[number]


def times(key: Key, index: Tensor) -> Tensor:
    """Times in (0, 1], float64 [B]: each uniform, and any run of consecutive samples evenly spread.

    The Kronecker sequence of the golden ratio with a random shift. It is low-discrepancy over the global batch, over
    batches, and over a whole evaluation set at once, and needs to know neither batch size nor ranks.
    """
    shift = uniform(key, torch.zeros((), dtype=torch.int64, device=index.device))
    # index * phi loses its fraction's last bits when index is large: 2^20 samples a period keep 33 of them.
    return 1 - (shift + (index % 2**20).double() * _PHI) % 1.0


def categorical(log_p: Tensor, u: Tensor) -> Tensor:
    """Invert the cumulative distribution at `u`: [R, V] log-probabilities, [R] or [R, n] uniforms -> ids like `u`.

    Probabilities are summed in float64, and each draw takes one uniform of 53 bits, so that the tail of a large vocabulary has
    its share. An id of probability zero is never drawn.
    """
    # In place: fresh pages for each of three tables of V cost a small batch more than the sums do.
    cumulative = log_p.to(torch.float64, copy=True).exp_().cumsum_(-1)
    total = cumulative[:, -1:]
    below = (u.reshape(len(log_p), u.numel() // max(1, len(log_p))) * total).minimum(
        torch.nextafter(total, torch.zeros_like(total))
    )
    return torch.searchsorted(cumulative, below, right=True).view_as(u)
