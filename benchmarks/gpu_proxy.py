"""What a GPU would feel, counted on a CPU: operations, host waits and bytes of a training and of a sampling step.

    python benchmarks/gpu_proxy.py --json docs/results/gpu_proxy.json

Tensors of the network live on the `meta` device: they have shapes and no contents, so a step of 170M weights takes no time.
A dispatch mode sees every operation. Eager, an operation is a kernel to launch; a view launches nothing. "Compiled" is the
default on a GPU: blocks, noise and head are compiled for this CPU, and inductor's own count of kernels and bytes (inductor.py)
takes their operations' place.

  operations  kernels to launch, attention counted as one forward and one backward
  waits       the host reads something of the device and cannot go on launching: nonzero, item, copies to the host
  bytes       read and written by all operations, views apart; a gather reads what it returns
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from inductor import Count
from measure import arguments, machine, parsed, publish, table
from regions import Regions, hashes
from torch import Tensor
from torch.fx.experimental import _config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redraft.families.base import build
from redraft.hub.model import Model
from redraft.network.sizes import from_size
from redraft.network.transformer import Transformer
from redraft.text.tokenizers.tokenizer import Bytes
from redraft.training.trainer import LossModule
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
SAMPLED = ("ar", "mdlm", "duo", "esolm", "bd3lm", "gidd")


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


def network_of(vocab: int) -> Transformer:
    with META:
        return Transformer(from_size("170M", "dit", vocab), torch.bfloat16)


def batch_of(rows: int, length: int) -> Batch:
    scored = torch.ones(rows, length, dtype=torch.bool, device=META)
    tokens, places = torch.zeros(rows, length, dtype=torch.int64, device=META), torch.arange(rows * length, device=META)
    return Batch(tokens, scored, torch.arange(rows, device=META), places=places)


def eager(run: Callable[[], Any]) -> Count:
    """What a function does on the meta device."""
    with counting() as mode:
        run()
    return mode.count


def training(name: str, vocab: int, rows: int, length: int, fuse: Regions | None) -> dict[str, Count]:
    """Forward and backward of one micro-batch: whole, and all but its trunk, the head and the noise."""
    kind, options = FAMILIES[name]
    network, batch = network_of(vocab), batch_of(rows, length)
    descent = LossModule(build(kind, options, vocab), network, None, 0)
    seen: list[View] = []
    plain = network.trunk
    network.trunk = lambda view: (seen.append(view), plain(view))[1]  # type: ignore[method-assign]
    with hashes() as hashed, counting() as mode:
        descent(batch, 0.1).sum().backward()
    network.zero_grad()
    with counting() as trunk:
        for view in seen:
            plain(view).sum().backward()
    found = {"eager": mode.count, "eager head and noise": mode.count - trunk.count}
    print(name, "waits for", dict(mode.waited), file=sys.stderr)
    if fuse is not None:
        tokens = sum(view.tokens.numel() for view in seen)
        blocks = fuse.block(tokens, True, True) * network.shape.depth
        rest = fuse.hash(rows, length) * len(hashed) + fuse.head(kind, rows * length)
        found |= {
            "compiled": mode.count - blocks - rest,
            "compiled head and noise": found["eager head and noise"] - rest,
        }
    return found


def sampling(name: str, vocab: int, rows: int, length: int, fuse: Regions | None) -> dict[str, Count]:
    """One step in the middle of a text."""
    kind, options = FAMILIES[name]
    family = build(kind, options, vocab)
    model = Model(family, network_of(vocab).eval(), Bytes(), length, {})
    with torch.no_grad(), counting(int(kind != "ar")) as mode:
        seen: list[int] = []
        denoiser = model.denoiser()
        plain = denoiser.network.trunk
        denoiser.network.trunk = lambda view: (seen.append(view.tokens.numel()), plain(view))[1]  # type: ignore[method-assign]
        frames = model.frames(model.canvas("", rows, length), denoiser, "", 64, 0)
        next(frames)
        before, waited = replace(mode.count), mode.waited.copy()
        seen.clear()
        next(frames)
        step = mode.count - before
    print(name, "sampling waits for", dict(mode.waited - waited), file=sys.stderr)
    found = {"eager": step}
    if fuse is not None:
        blocks = fuse.block(sum(seen), False, family.clocked) * model.network.shape.depth
        found["compiled"] = step - blocks
    return found


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--eager", action="store_true", help="leave out what compiles, which takes minutes")
    args = parsed(parser)
    fuse = None if args.eager or args.quick else Regions(args.vocab, eager)
    families = dict(list(FAMILIES.items())[:2]) if args.quick else FAMILIES
    result: dict[str, Any] = {"machine": machine(), "training": {}, "sampling": {}}
    texts = []
    for what, measure, rows, length in (("training", training, 8, 2048), ("sampling", sampling, 1, 1024)):
        lines = []
        for name in families if what == "training" else [n for n in families if n in SAMPLED]:
            counts = measure(name, args.vocab, rows, length, fuse)
            result[what][name] = {part: asdict(count) for part, count in counts.items()}
            lines.append(
                (name, *(f"{c.operations:.0f} / {c.waits:.0f} / {c.bytes / 1e9:.2f}" for c in counts.values()))
            )
        texts.append(table((f"{what}, 170M, {rows} x {length}", *counts), lines))
    publish(result, "\n\n".join([*texts, "operations / host waits / GB"]), args.json)


if __name__ == "__main__":
    main()
