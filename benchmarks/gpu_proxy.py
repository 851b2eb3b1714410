"""What a GPU would feel, counted on a CPU: operations, host waits and bytes of a training and of a sampling step.

    python benchmarks/gpu_proxy.py --json docs/results/gpu_proxy.json

Tensors of the network live on the `meta` device: they have shapes and no contents, so a step of 170M weights takes no time.
A dispatch mode sees every operation. Eager, an operation is a kernel to launch; a view launches nothing. Compiled regions
(blocks, noise, head) are compiled for this CPU by torch.compile, and inductor's own count of kernels and bytes takes their
operations' place: on a GPU it fuses by the same rules, into about as many.

  operations  kernels to launch, attention counted as one forward and one backward
  waits       the host reads something of the device and cannot go on launching: nonzero, item, copies to the host
  bytes       read and written by all operations, views apart; a gather reads what it returns
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from measure import arguments, machine, parsed, publish, table
from torch import Tensor
from torch.fx.experimental import _config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redraft.families.base import build
from redraft.hub.model import Model
from redraft.network.sizes import from_size
from redraft.network.transformer import Transformer
from redraft.text.tokenizer import Bytes
from redraft.training.parallel import Descent
from redraft.types import Batch, View

META = torch.device("meta")
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "unique",
    "_unique2",
    "unique_consecutive",
    "masked_scatter_backward",
}
FREE = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "alias",
    "lift_fresh",
    "_unsafe_view",
}
GATHERS = {"index_select", "embedding", "gather", "index"}
FAMILIES = {
    "ar": ("ar", {}),
    "mdlm": ("mdlm", {}),
    "duo": ("duo", {}),
    "duo curriculum": ("duo", {"objective": "curriculum"}),
    "esolm": ("esolm", {}),
    "esolm alpha_0 = 0.5": ("esolm", {"alpha_0": 0.5}),
    "bd3lm": ("bd3lm", {}),
    "gidd": ("gidd", {}),
    "sedd": ("sedd", {}),
    "d3pm": ("d3pm", {}),
}
STEPS = {"ar": {}, "duo": {"steps": 64}, "mdlm": {"steps": 64}, "esolm": {"steps": 64}, "bd3lm": {}, "gidd": {}}


@dataclass
class Count:
    operations: float = 0
    waits: float = 0
    bytes: float = 0

    def __sub__(self, other: Count) -> Count:
        return Count(self.operations - other.operations, self.waits - other.waits, self.bytes - other.bytes)

    def copy(self) -> Count:
        return Count(self.operations, self.waits, self.bytes)


class Counting(TorchDispatchMode):
    """Counts what is done on the meta device. Where a number without contents is asked for, it is `answer`."""

    def __init__(self, answer: int = 1) -> None:
        super().__init__()
        self.answer = answer
        self.count, self.names, self.waited = Count(), Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        away = [tensor for tensor in inputs if tensor.is_meta]
        if away and name == "_local_scalar_dense":
            self.wait(name)
            return self.answer
        if away and name == "_to_copy" and str(kwargs.get("device")) == "cpu":
            self.wait("copy to the host")
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name == "index" and any(x is not None and x.dtype == torch.bool and x.is_meta for x in args[1]):
            self.wait("index by bool")
        if away and name in WAITS:
            self.wait(name)
        out = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.is_meta]
        if outputs and name not in FREE and not _view(func):
            self.names[name] += 1
            self.count.operations += 1
            written = sum(_bytes(x) for x in outputs)
            read = written if name in GATHERS else sum(_bytes(x) for x in away)
            self.count.bytes += written + read
        return out

    def wait(self, name: str) -> None:
        self.count.waits += 1
        self.waited[name] += 1

    def attention(self, *tensors: Tensor) -> None:
        """One fused kernel over these."""
        self.count.operations += 1
        self.count.bytes += sum(_bytes(x) for x in tensors)


def _view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _bytes(x: Tensor) -> int:
    """Of what is stored: an expanded dimension is there once."""
    return x.element_size() * torch.Size(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride).numel()


@contextmanager
def counting(answer: int = 1) -> Iterator[Counting]:
    """The mode, with attention as one operation: its meta kernel is a composition of many."""
    mode, plain = Counting(answer), F.scaled_dot_product_attention

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            with torch.utils._python_dispatch._disable_current_modes():
                out = torch.empty_like(q)
            kept = [q, k, v, out] + ([] if mask is None else [mask])
            ctx.kept = kept
            mode.attention(*kept)
            return out

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor) -> Any:
            q, k, v, *_ = ctx.kept
            with torch.utils._python_dispatch._disable_current_modes():
                grads = [torch.empty_like(x) for x in (q, k, v)]
            mode.attention(*ctx.kept, *upstream, *grads)
            return *grads, None

    F.scaled_dot_product_attention = lambda q, k, v, attn_mask=None, **_: Attention.apply(q, k, v, attn_mask)
    try:
        with _config.patch(meta_nonzero_assume_all_nonzero=True), mode:
            yield mode
    finally:
        F.scaled_dot_product_attention = plain


def network_of(name: str, vocab: int) -> Transformer:
    with META:
        return Transformer(from_size("170M", "dit", vocab), torch.bfloat16)


def batch_of(rows: int, length: int) -> Batch:
    scored = torch.ones(rows, length, dtype=torch.bool, device=META)
    tokens, places = torch.zeros(rows, length, dtype=torch.int64, device=META), torch.arange(rows * length, device=META)
    return Batch(tokens, scored, torch.arange(rows, device=META), places=places)


def training(name: str, vocab: int, rows: int, length: int) -> dict[str, Count]:
    """Forward and backward of one micro-batch: whole, its trunk, and what is left, the head and the noise."""
    kind, options = FAMILIES[name]
    network, batch = network_of(name, vocab), batch_of(rows, length)
    descent = Descent(build(kind, options, vocab), network, None, 0)
    with counting() as mode:
        nats = descent(batch, 0.1)
        forward = mode.count.copy()
        nats.sum().backward()
    whole = {"forward": forward, "whole": mode.count.copy()}
    seen: list[View] = []
    plain = network.trunk
    network.trunk = lambda view: (seen.append(view), plain(view))[1]  # type: ignore[method-assign]
    with counting():
        descent(batch, 0.1)
    network.trunk = plain  # type: ignore[method-assign]
    with counting() as trunk:
        for view in seen:
            network.zero_grad()
            plain(view).sum().backward()
    print(name, dict(mode.waited), mode.names.most_common(12), file=sys.stderr)
    return {**whole, "trunk": trunk.count, "rest": whole["whole"] - trunk.count}


def sampling(name: str, vocab: int, rows: int, length: int) -> Count:
    """One step in the middle of a text."""
    kind, options = FAMILIES[name]
    family = build(kind, options, vocab)
    model = Model(family, network_of(name, vocab).eval(), Bytes(), length, {})
    with torch.no_grad(), counting(int(name != "ar")) as mode:
        canvas = model.canvas("", rows, length)
        denoiser = model.denoiser()
        frames = model.frames(canvas, denoiser, "", STEPS.get(name, {"steps": 64}).get("steps", 64), 0)
        for _ in islice(frames, 1):
            pass
        before, at = mode.count.copy(), mode.waited.copy()
        next(frames)
        count = mode.count - before
    print(name, "sampling", dict(mode.waited - at), file=sys.stderr)
    return count


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--vocab", type=int, default=50257)
    args = parsed(parser)
    result: dict[str, Any] = {"machine": machine(), "training": {}, "sampling": {}}
    rows = []
    for name in FAMILIES:
        counts = training(name, args.vocab, 8, 2048)
        result["training"][name] = {part: asdict(count) for part, count in counts.items()}
        rows.append((name, *(f"{c.operations:.0f} / {c.waits:.0f} / {c.bytes / 1e9:.1f}" for c in counts.values())))
    text = table(("training, 170M, 8 x 2048", "forward", "forward and backward", "trunk", "head and noise"), rows)
    rows = []
    for name in ("ar", "mdlm", "duo", "esolm", "bd3lm", "gidd"):
        count = sampling(name, args.vocab, 1, 1024)
        result["sampling"][name] = asdict(count)
        rows.append((name, f"{count.operations:.0f} / {count.waits:.0f} / {count.bytes / 1e9:.2f}"))
    text += "\n\n" + table(("sampling, 170M, 1 x 1024", "a step"), rows)
    publish(result, text + "\n\noperations / host waits / GB", args.json)


if __name__ == "__main__":
    main()
