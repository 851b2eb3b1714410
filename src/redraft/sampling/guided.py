"""Classifier-free guidance, once: for every sampler and for every likelihood (SMDM, arXiv:2410.18514, eq. 6).

    log p_w = (1 + w) log p(. | prompt) - w log p(. | no prompt) + constant

`Pair` is a network that returns these guided logits from two forward passes, the second without the prompt. Samplers and
estimators use it like any network. Mixed logits need no normalising, since a softmax does not change when a constant
is added to a row. A guided NELBO is a score, no longer a bound on -log p.

What a network sees instead of the prompt (`without_prompt`): what its family shows it of text that is not yet written.

  masked families, GIDD   [MASK] at every place of the prompt, as in SMDM
  XDLM                    [MASK] or, with the probability of its kernel, a random id: a prompt at t = 1, its prior
  Duo                     uniform noise: a prompt at t = 1, its prior. There is no id that says "unknown", and uniform ids are
                          the only uninformative input that it was trained on
  Eso-LM, BD3-LM          nothing: the prompt is hidden from attention and places stay. Tokens that come later in the order
                          of generation are seen by nobody, while a [MASK] that written tokens look at was never trained on
  AR                      nothing, and the gap is closed: BOS, then the rest of the text from its first place

"unsupervised" asks a model of plain text so. "standard" is for one that was trained with prompts dropped
(`data.cfg_dropout`), and shows what was shown there: the spare id at every place of the prompt. (Eso-LM hides it in both:
trained so, it meets any part of the dropped prompt in its random orders, none of it among them.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.errors import unknown
from redraft.families.ar import AR
from redraft.families.base import Family
from redraft.families.bd3lm import BD3LM
from redraft.families.esolm import EsoLM
from redraft.network.head import chunk_rows
from redraft.network.padding import rule
from redraft.sampling.base import Denoiser
from redraft.types import Attention, Cache, Network, Noise, Pattern, View

KINDS = ("unsupervised", "standard")


@dataclass(frozen=True)
class Blank:
    """What stands for the prompt: `ids` [B, L] in its places, or None where nobody sees it. `closed`: later tokens then move
    up. `first`: the place of the text's first token in a view."""

    ids: Tensor | None
    closed: bool = False
    first: int = 0


def without_prompt(family: Family, tokens: Tensor, noise: Noise, kind: str = "unsupervised") -> Blank:
    """For rows of text [B, L]; `noise` draws the uniform ids of a family that has no mask."""
    if kind not in KINDS:
        raise unknown("kind of guidance", kind, KINDS)
    first = int(isinstance(family, AR) and family.begins)
    if isinstance(family, EsoLM):
        return Blank(None)
    if kind == "standard":
        return Blank(torch.full_like(tokens, family.vocab), first=first)
    if isinstance(family, AR | BD3LM):
        return Blank(None, closed=isinstance(family, AR), first=first)
    return Blank(family.prior(noise))


def guided(network: Network, family: Family, weight: float, prompt: Tensor, blank: Blank) -> Network:
    """The network guided by `prompt` [B, L] bool; at weight 0 the network itself."""
    return network if weight == 0 else Pair(network, family.vocab, weight, prompt, blank)


@dataclass(frozen=True)
class Pair:
    """Hidden states [..., 2 d]: with the prompt, and without. Rows of a view are those of `prompt` [B, L]."""

    network: Network
    vocab: int
    weight: float
    prompt: Tensor
    blank: Blank

    def trunk(self, view: View) -> Tensor:
        free = self.without(view)
        if view.cache is not None:
            assert isinstance(view.cache, PairCache)
            view = replace(view, cache=view.cache.given)
        return torch.cat([self.network.trunk(view), self.network.trunk(free)], -1)

    def head(self, rows: Tensor) -> Tensor:
        given, free = (self.network.head(part) for part in rows.chunk(2, -1))
        mixed = (1 + self.weight) * given - self.weight * free
        return torch.where(given.isneginf(), given, mixed)  # impossible with the prompt is impossible

    def nats(self, rows: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        parts = zip(*(x.split(chunk_rows(self.vocab, rows.device, 2)) for x in (rows, targets)), strict=True)
        nats = torch.cat([-_at(self.head(some).log_softmax(-1), ids) for some, ids in parts])
        return nats if weights is None else nats * weights.to(nats.dtype)

    def by_rule(self, rule: Callable[..., Tensor], rows: Tensor, *others: Tensor, fuse: bool = True) -> Tensor:
        parts = zip(*(x.split(chunk_rows(self.vocab, rows.device, 2)) for x in (rows, *others)), strict=True)
        return torch.cat([rule(self.head(some), *its) for some, *its in parts])

    def cache(self, rows: int, size: int) -> PairCache:
        given, free = (self.network.cache(rows, size) for _ in range(2))
        slots = torch.zeros(rows, 0, dtype=torch.int64, device=self.prompt.device)
        return PairCache(given, free, self.prompt.new_zeros(rows, size), slots)

    def without(self, view: View) -> View:
        """The same view of a text whose prompt is blank."""
        rows, queries = view.tokens.shape
        cache = view.cache
        assert cache is None or isinstance(cache, PairCache)
        inside = self.of_prompt(view.positions.expand(rows, queries))
        free = replace(view, cache=None if cache is None else cache.free)
        if self.blank.ids is not None:
            place = (view.positions.expand(rows, queries) - self.blank.first).clamp(0, self.prompt.shape[1] - 1)
            return replace(free, tokens=self.blank.ids.gather(1, place).where(inside, view.tokens))
        free = replace(free, attention=seeing(view, inside))
        return self.moved_up(free) if self.blank.closed else free

    def of_prompt(self, positions: Tensor) -> Tensor:
        """Which of `positions` [B, Q] are the prompt's."""
        place, length = positions - self.blank.first, self.prompt.shape[1]
        return (place >= 0) & (place < length) & self.prompt.gather(1, place.clamp(0, length - 1))

    def moved_up(self, view: View) -> View:
        """Every token that is not the prompt's as many places earlier as there are prompt tokens."""
        count = self.prompt.sum(1)
        after = view.positions > count[:, None]
        lengths = None if view.lengths is None else view.lengths - count
        return replace(view, positions=(view.positions - count[:, None]).where(after, view.positions), lengths=lengths)


@dataclass(frozen=True)
class PairCache:
    """Two KV caches, with and without the prompt; which slots [B, S] of the second hold it (one tensor for all copies)."""

    given: Cache
    free: Cache
    hidden: Tensor
    slots: Tensor

    def at(self, slots: Tensor, run: slice | None = None) -> PairCache:
        return PairCache(self.given.at(slots, run), self.free.at(slots, run), self.hidden, slots)

    def causal(self) -> Tensor:
        return self.given.causal()


def seeing(view: View, inside: Tensor) -> Tensor | Pattern:
    """The pattern [B, Q, K] of a view with the tokens `inside` [B, Q] seen by nobody but themselves."""
    cache = view.cache
    if isinstance(cache, PairCache):
        cache.hidden.scatter_(1, cache.slots, inside)
        pattern = cache.causal() if view.attention is Attention.CAUSAL else view.attention
        assert isinstance(pattern, Tensor)
        width = pattern.shape[-1]
        itself = cache.slots[..., None] == torch.arange(width, device=inside.device)
        return pattern & (~cache.hidden[:, None, :width] | itself)
    base = rule(view.attention)
    sees = lambda b, q, k: base(b, q, k) & (~inside[b, k] | (q == k))
    return Pattern(sees, (len(inside), *2 * inside.shape[1:]))


class Guided(Denoiser):
    """A denoiser guided by `prompt` [B, L] bool, for every sampler. At weight 0 it is `plain` itself.

    `blank`: an id that stands for the prompt, or what `without_prompt` says. Beliefs are guided, and temperature and nucleus
    come after: at temperature 0 a sharpened belief has nothing left to guide. `plain` counts the calls, two for each of these.
    """

    def __new__(cls, plain: Denoiser, weight: float, prompt: Tensor, blank: int | Blank) -> Denoiser:  # type: ignore[misc]
        return plain if weight == 0 else super().__new__(cls)

    def __init__(self, plain: Denoiser, weight: float, prompt: Tensor, blank: int | Blank):
        instead = Blank(torch.full_like(prompt, blank, dtype=torch.int64)) if isinstance(blank, int) else blank
        network = Pair(plain.network, plain.family.vocab, weight, prompt, instead)
        super().__init__(network, plain.family, plain.temperature, plain.top_p, plain.static)
        self.plain, self.pair = plain, network

    def trunk(self, view: View) -> Tensor:
        self.plain.calls += 2
        return super().trunk(view)

    def only(self, rows: Tensor) -> Denoiser:
        blank = self.pair.blank
        some = replace(blank, ids=None if blank.ids is None else blank.ids[rows])
        return Guided(self.plain, self.pair.weight, self.pair.prompt[rows], some)


def _at(log_p: Tensor, ids: Tensor) -> Tensor:
    return log_p.gather(-1, ids[:, None])[:, 0]
