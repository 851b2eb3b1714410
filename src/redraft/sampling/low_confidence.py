"""Low-confidence remasking: MaskGIT's rule (Chang et al. 2022, arXiv:2202.04200), SMDM's `greddy`; and EB-sampling.

Good texts from few calls, but not draws from the model: which positions are written depends on what was drawn for them.
Confidence is the model's own belief (guided, if it is), before temperature and nucleus: at temperature 0 all drawn tokens
would be equally sure. Tokens once written stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from redraft.errors import UserError, unknown
from redraft.families.base import Family
from redraft.network.device import flat_places, sent
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.sampling.base import Denoiser, Sampler, check_steps, mask_refusal, noise_of, unwritten
from redraft.types import Canvas, Noise


def entropy(log_p: Tensor) -> Tensor:
    """[R, V] -> [R] nats."""
    return torch.special.entr(log_p.exp()).sum(-1)


def margin(log_p: Tensor) -> Tensor:
    """[R, V] -> [R]: how far the likeliest token is ahead of the next (Kim et al. 2025, arXiv:2502.06768)."""
    best = log_p.exp().topk(2).values
    return best[:, 0] - best[:, 1]


CERTAINTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "confidence": lambda log_p: log_p.amax(-1),
    "margin": margin,
    "entropy": lambda log_p: -entropy(log_p),
}
"""log p [R, V] -> how sure, [R]. No draw decides which position is next: a text has one path, and so an exact likelihood
(`redraft eval --estimator chain_rule --order margin`)."""
TIE = 1e-5
"""Positions as near in certainty as this are equally sure: on a canvas of masks alone all of them are, but for rounding, which
must not decide (it differs from batch size to batch size)."""
ORDERS = ("top_probability", *CERTAINTIES)
"""`top_probability` is of the token that was drawn, as in SMDM; `confidence` of the likeliest one."""


@dataclass(frozen=True)
class LowConfidence(Sampler):
    """With k of `steps` to go, each row writes its surest floor(hidden / k): SMDM's int(hidden (1 - s/t)) in integers. The
    last step writes what is left. A step that writes nothing in any row does not call the network."""

    exact: ClassVar[bool] = False
    steps: int = 64
    order: str = "top_probability"

    def __post_init__(self) -> None:
        check_steps(self.steps)
        _check_order(self.order)

    def refusal(self, family: Family) -> str | None:
        return mask_refusal(family)

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        hidden = ~canvas.fixed
        canvas = unwritten(denoiser.family, canvas, key)
        for left in range(self.steps, 0, -1):
            count = hidden.sum(1, keepdim=True) // left
            where = hidden & (count > 0)
            if where.any():
                guess = _guess(denoiser, canvas.tokens, where, noise_of(canvas, key.fold_in("step", left)), self.order)
                written = where & (guess.rank < count)
                canvas, hidden = canvas.write(guess.tokens.where(written, canvas.tokens)), hidden & ~written
            yield canvas


@dataclass(frozen=True)
class EntropyBounded(Sampler):
    """EB-sampling (Ben-Hamu et al. 2025, arXiv:2505.24857): a call writes as many of the surest positions as keep the sum
    of their entropies, less the largest, within `gamma` nats: a bound on what writing them side by side can cost.
    At least one token of each row a call; one at a time at gamma = 0. Which rows need how many calls depends on them."""

    exact: ClassVar[bool] = False
    gamma: float = 0.1
    order: str = "entropy"

    def __post_init__(self) -> None:
        _check_order(self.order)
        if self.gamma < 0:
            raise UserError(f"gamma must be at least 0 nats, got {self.gamma}")

    def refusal(self, family: Family) -> str | None:
        return mask_refusal(family)

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        hidden, calls = ~canvas.fixed, 0
        canvas = unwritten(denoiser.family, canvas, key)
        if canvas.fixed.all():
            yield canvas
        while hidden.any():
            guess = _guess(denoiser, canvas.tokens, hidden, noise_of(canvas, key.fold_in("call", calls)), self.order)
            written = hidden & (guess.rank < within(guess.entropies, self.gamma))
            canvas, hidden = canvas.write(guess.tokens.where(written, canvas.tokens)), hidden & ~written
            calls += 1
            yield canvas


@dataclass(frozen=True)
class _Guess:
    tokens: Tensor  # [B, L] drawn where asked
    rank: Tensor  # [B, L] 0: the surest of its row; positions not asked for come last
    entropies: Tensor  # [B, L] nats, surest position first; zeros at the end


def _guess(denoiser: Denoiser, tokens: Tensor, where: Tensor, noise: Noise, order: str) -> _Guess:
    """What the denoiser would write at `where` [B, L], and how sure it is."""
    any_time = torch.ones_like(where[:, :1], dtype=torch.float64)

    def told(log_p: Tensor, u: Tensor) -> Tensor:
        """A few rows' ids, certainties and entropies, [R, 3] in float64."""
        drawn = counter_rng.categorical(denoiser.sharpened(log_p), u)
        sure = log_p.gather(-1, drawn[:, None])[:, 0] if order == "top_probability" else CERTAINTIES[order](log_p)
        return torch.stack([drawn.double(), sure.double(), entropy(log_p).double()], -1)

    places = flat_places(where)
    u = sent(noise("token"), tokens.device).flatten()[places]
    drawn, certainty, nats = denoiser.belief(tokens, any_time).each(told, places, u).unbind(-1)
    put = lambda like, values: like.flatten().index_copy(0, places, values).view_as(where)
    nothing = torch.zeros_like(where, dtype=torch.float64)
    sure = put(nothing - torch.inf, certainty)
    order_of = surest_first(sure, 0.0 if order == "top_probability" else TIE)
    return _Guess(put(tokens, drawn.long()), order_of.argsort(1), put(nothing, nats).gather(1, order_of))


def surest_first(certainty: Tensor, tie: float = TIE) -> Tensor:
    """[B, L] -> the positions of each row, the surest first; of those that are less sure than the surest by the same whole
    number of `tie`s, the earlier."""
    if not tie:
        return certainty.argsort(stable=True, dim=1, descending=True)
    return ((certainty.amax(1, keepdim=True) - certainty) / tie).floor().argsort(stable=True, dim=1)


def within(entropies: Tensor, gamma: float) -> Tensor:
    """How many of the first [B, L] nats sum, less their largest, to at most gamma: [B, 1], at least 1.

    The sum less the largest never falls as positions are added, so they are a prefix.
    """
    others = entropies.cumsum(1) - entropies.cummax(1).values
    return (others <= gamma).sum(1, keepdim=True)


def _check_order(order: str) -> None:
    if order not in ORDERS:
        raise unknown("order", order, ORDERS)
