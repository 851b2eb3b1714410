"""One call of the network for several texts: views of one row each are padded to a common length and stacked.

What can be stacked: views that look at all of their text, whatever their length and time; and views with a row of one KV
pool, by any pattern. Others (patterns without a cache, soft embeddings) are called alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from redraft.families.base import Family
from redraft.network.kv_cache import RowCache
from redraft.network.transformer import Transformer
from redraft.sampling.base import Denoiser
from redraft.types import Attention, View

# What a call costs by itself on a CPU: so many tokens times the square of the width (measured: 60 at 128)
CALL = 1 << 20


def trunks(network: Transformer, views: Sequence[View]) -> list[Tensor]:
    """[1, Q, d] hidden states of each view, in as few calls as their shapes allow."""
    out: list[Tensor | None] = [None] * len(views)
    for kind in (_cached, _whole, _other):
        some = [number for number, view in enumerate(views) if _kind(view) is kind]
        for group in _alike([views[number].tokens.shape[1] for number in some], network):
            numbers = [some[at] for at in group]
            for number, hidden in zip(numbers, kind(network, [views[number] for number in numbers]), strict=True):
                out[number] = hidden
    return [hidden for hidden in out if hidden is not None]


def _kind(view: View) -> Callable[[Transformer, Sequence[View]], list[Tensor]]:
    if isinstance(view.cache, RowCache):
        return _cached
    plain = view.attention is Attention.FULL and view.soft is None and view.lengths is None and view.cache is None
    return _whole if plain else _other


def _alike(sizes: Sequence[int], network: Transformer) -> list[list[int]]:
    """Places of `sizes` in groups, each of which is padded to its longest. On a CPU padding is worth no more tokens than a
    call more would cost; elsewhere half of what is read may be padding, as small calls cost what large ones do."""
    groups: list[list[int]] = []
    total, on_cpu = 0, network.embedding.device.type == "cpu"
    for place in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        group, real = groups[-1] if groups else [], total + sizes[place]
        spare = CALL // network.shape.width**2 if on_cpu else real
        if group and sizes[group[0]] * (len(group) + 1) - real <= spare:
            group.append(place)
            total = real
        else:
            groups.append([place])
            total = sizes[place]
    return groups


def _whole(network: Transformer, views: Sequence[View]) -> list[Tensor]:
    """Views of whole texts. Shorter ones are padded, and the network is told their lengths."""
    sizes = [view.tokens.shape[1] for view in views]
    device, longest = views[0].tokens.device, max(sizes)
    even = min(sizes) == longest
    view = View(
        stacked([view.tokens for view in views], longest),
        stacked([view.positions for view in views], longest, fill=longest),  # after every length: padding
        sigma=None if views[0].sigma is None else torch.cat([_sigma(view) for view in views]),
        shifted=views[0].shifted,
        lengths=None if even else torch.tensor(sizes, device=device),
    )
    return _rows(network.trunk(view), sizes)


def _sigma(view: View) -> Tensor:
    assert view.sigma is not None, "views of one family have a time, or none has"
    return view.sigma


def _cached(network: Transformer, views: Sequence[View]) -> list[Tensor]:
    """Views with a row of the pool each. Padding goes to the last slot and sees all: nobody reads what comes of it."""
    order = sorted(range(len(views)), key=lambda number: _row(views[number]))
    views = [views[number] for number in order]
    caches = [view.cache for view in views if isinstance(view.cache, RowCache)]
    sizes = [view.tokens.shape[1] for view in views]
    longest, pool = max(sizes), caches[0].pool
    slots = stacked([cache.slots for cache in caches], longest, fill=pool.slots)
    seen = max(_seen(view, cache) for view, cache in zip(views, caches, strict=True))
    pattern = torch.arange(seen, device=slots.device) <= slots[:, :, None]
    for number, view in enumerate(views):
        if isinstance(view.attention, Tensor):
            queries, keys = view.attention.shape[1:]
            pattern[number, :queries] = False
            pattern[number, :queries, :keys] = view.attention[0]
    merged = View(
        stacked([view.tokens for view in views], longest),
        stacked([view.positions for view in views], longest),
        pattern,
        cache=pool.call(caches, slots),
        sigma=None if views[0].sigma is None else torch.cat([_sigma(view) for view in views]),
    )
    hidden = _rows(network.trunk(merged), sizes)
    return [hidden[order.index(number)] for number in range(len(order))]


def _row(view: View) -> int:
    assert isinstance(view.cache, RowCache)
    return view.cache.row.number


def _seen(view: View, cache: RowCache) -> int:
    """Slots that a view looks at."""
    if isinstance(view.attention, Tensor):
        return view.attention.shape[-1]
    return cache.run.stop if cache.run is not None else int(cache.slots.max()) + 1


def _other(network: Transformer, views: Sequence[View]) -> list[Tensor]:
    return [network.trunk(view) for view in views]


def stacked(parts: Sequence[Tensor], longest: int, fill: int = 0) -> Tensor:
    """[1, Q] integers each -> [n, longest]."""
    pad = lambda part: torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=fill)
    return torch.cat([pad(part) if part.shape[1] < longest else part for part in parts])


def _rows(hidden: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    return [hidden[number : number + 1, :size] for number, size in enumerate(sizes)]


class Told(NamedTuple):
    """What is asked of hidden rows [R, d]: `function(log p [r, V], *others [r])` of each, at a temperature and from a nucleus.
    `ids` [R]: the tokens in their places, for a family whose logits are read by them (`Denoiser.log_p`)."""

    function: Callable[..., Tensor]
    rows: Tensor
    ids: Tensor | None
    others: tuple[Tensor, ...]
    temperature: float
    top_p: float


def told(network: Transformer, family: Family, wanted: Sequence[Told]) -> list[Tensor]:
    """[R, ...] of each text, those of equal functions and settings in one product."""
    out: dict[int, Tensor] = {}
    kinds = [(one.function, one.ids is None, one.temperature, one.top_p) for one in wanted]
    for kind in dict.fromkeys(kinds):
        numbers = [number for number, own in enumerate(kinds) if own == kind]
        some = [wanted[number] for number in numbers]
        ids = [one.ids for one in some if one.ids is not None]
        others = (torch.cat(parts) for parts in zip(*(one.others for one in some), strict=True))
        denoiser, rows = Denoiser(network, family, *kind[2:]), torch.cat([one.rows for one in some])
        found = denoiser.each(kind[0], rows, torch.cat(ids) if ids else None, *others)
        out |= zip(numbers, found.split([len(one.rows) for one in some]), strict=True)
    return [out[number] for number in range(len(wanted))]


def heads(network: Transformer, rows: Sequence[Tensor]) -> list[Tensor]:
    """Logits [R, V] of each text's hidden rows [R, d], in one product."""
    return list(network.head(torch.cat(list(rows))).split([len(part) for part in rows]))
