"""What torch.compile makes of a function: launches and bytes by inductor's own scheduler, without running on a GPU.

The function is compiled for this CPU. Inductor fuses by the same rules for a GPU, so the number of kernels is about that of
one; bytes are those that its kernels, the products it calls included, read and write at the sizes given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor
from torch._inductor.scheduler import NopKernelSchedulerNode, Scheduler


@dataclass
class Count:
    operations: float = 0
    waits: float = 0
    bytes: float = 0

    def __sub__(self, other: Count) -> Count:
        return self + other * -1

    def __add__(self, other: Count) -> Count:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Count(*(mine + theirs for mine, theirs in pairs))

    def __mul__(self, times: float) -> Count:
        return Count(*(value * times for value in vars(self).values()))


@contextmanager
def scheduled() -> Iterator[Count]:
    """Adds up what is compiled inside: launches after fusion, forward and backward, and their bytes."""
    count, plain = Count(), Scheduler.codegen

    def codegen(self: Scheduler) -> Any:
        launches = [node for node in self.nodes if not isinstance(node, NopKernelSchedulerNode)]
        count.operations += len(launches)
        count.bytes += sum(node.get_read_write_buffers_sizes() for node in launches)
        return plain(self)

    Scheduler.codegen = codegen  # type: ignore[method-assign]
    try:
        with torch._inductor.config.patch(force_disable_caches=True):
            yield count
    finally:
        Scheduler.codegen = plain  # type: ignore[method-assign]


def compiled(function: Callable[..., Any], *inputs: Any, backward: bool) -> Count:
    """Of one call on real tensors; and of its backward pass."""
    torch._dynamo.reset()
    with scheduled() as count, torch.set_grad_enabled(backward):
        out = torch.compile(function)(*inputs)
        if backward:
            leaves = [
                x for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Tensor) and x.requires_grad
            ]
            torch.stack([leaf.sum() for leaf in leaves]).sum().backward()
    return count
