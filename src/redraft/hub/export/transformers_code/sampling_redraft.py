"""Sampling of an exported diffusion model: the reverse process of its family, categoricals drawn in float64.

t = 0 is text, t = 1 is noise. V text ids; id V is [MASK]. `free` [B, L] says what may be written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .configuration_redraft import RedraftConfig
from .network_redraft import wide

CARRIED = ("absorbing", "ordered", "blocks")  # what is visible is the text's own, and predicts itself
KINDS = ("absorbing", "uniform", "hybrid", "stationary")
SCHEDULES = ("linear", "log_linear", "cosine")

Hidden = Callable[..., Tensor]
"""What the network makes of tokens [B, Q]: [B, Q, d]."""
Draw = Callable[..., Tensor]
"""(rows [R, d], law) -> ids [R]: `law` makes of p(x0) [r, V] the probabilities to draw from, given a slice of the rows."""


class Process:
    """Each token alone: q(x_t | x_0) = alpha_t x_0 + (1 - alpha_t) pi_t, with pi_t over V ids and [MASK]."""

    def __init__(self, config: RedraftConfig):
        self.kind, self.vocab = config.process["kind"], config.vocab_size - 1
        self.schedule = config.process.get("schedule", "linear")
        if self.kind not in KINDS or self.schedule not in SCHEDULES:
            raise ValueError(f"this code knows no process {self.kind!r} with schedule {self.schedule!r}")
        self.share = config.process.get("uniform", {"uniform": 1.0}.get(self.kind, 0.0))  # of uniform noise

    def alpha(self, t: Tensor) -> Tensor:
        """The share of tokens that survive to time t, float64."""
        if self.kind == "hybrid":
            return (1 - t) / (1 + self.mass() * (t * (1 - t)).sqrt())
        if self.schedule == "cosine":
            return 1 - (math.pi / 2 * (1 - t)).cos()
        return 1 - (1 - 1e-3) * t if self.schedule == "log_linear" else 1 - t

    def mass(self) -> float:
        """Of a hybrid's uniform noise, whose share is that at t = 1/2."""
        return 2 * self.share / (1 - self.share)

    def law(self, t: Tensor) -> Tensor:
        """pi_t, [V + 1]."""
        if self.kind == "hybrid":
            masked = 1 / (1 + self.mass() * ((1 - t) / t.clamp(min=torch.finfo(t.dtype).tiny)).sqrt())
        else:
            masked = torch.full_like(t, 1 - self.share)
        return torch.cat([((1 - masked) / self.vocab).expand(self.vocab), masked[None]])

    def sigma(self, t: Tensor) -> Tensor:
        """-log alpha, what a network reads of the time; it stops where a ten-thousandth of the text is left."""
        return -self.alpha(t.double()).clamp(min=1e-4).log()

    def posterior(self, p0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """q(x_s | x_t, x_0 ~ p0), s < t, by Bayes: [R, V], [R] ids, times -> [R, V + 1], float64.

        Proportional to q(x_t | x_s) q(x_s | p0), where noise came upon x_t since s with weight `arrived`.
        """
        alpha_t, alpha_s, pi_t, pi_s = self.alpha(t), self.alpha(s), self.law(t), self.law(s)
        ratio = alpha_t / alpha_s
        arrived = (1 - alpha_t) * pi_t[xt] - ratio * (1 - alpha_s) * pi_s[xt]
        stayed = ratio * torch.nn.functional.one_hot(xt, self.vocab + 1)
        before = alpha_s * torch.nn.functional.pad(p0.double(), (0, 1)) + (1 - alpha_s) * pi_s
        joint = (stayed + arrived.clamp(min=0)[:, None]) * before
        return joint / joint.sum(-1, keepdim=True)


def uniforms(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Float64 in [0, 1), of the shape of `like`, drawn where the generator lives."""
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, dtype=torch.float64, device=device, generator=generator).to(like.device)


def categorical(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """Invert the cumulative distribution: [R, K] probabilities, float64 -> ids [R]. One of probability zero is never drawn."""
    cumulative = p.cumsum(-1)
    total = cumulative[:, -1]
    below = (uniforms(total, generator) * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, below[:, None], right=True)[:, 0]


def sharpened(logits: Tensor, temperature: float) -> Tensor:
    """[R, V] logits -> probabilities, float64; temperature 0 puts all on the likeliest id."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    return (wide(logits).log_softmax(-1) / temperature).log_softmax(-1).double().exp()


def ancestral(
    process: Process,
    hidden: Hidden,
    draw: Draw,
    tokens: Tensor,
    free: Tensor,
    steps: int,
    generator: torch.Generator | None,
) -> Tensor:
    """The reverse chain in `steps` equal steps from t = 1 to t = 0, from the prior."""
    one = torch.ones((), dtype=torch.float64, device=tokens.device)
    prior = categorical(process.law(one).expand(tokens.numel(), -1), generator).view_as(tokens)
    tokens = torch.where(free, prior, tokens)
    for t, s in pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=tokens.device)):
        where = free & (tokens == process.vocab) if process.kind == "absorbing" else free
        if not where.any():
            break
        rows, xt = hidden(tokens, t=t)[where], tokens[where]
        step = lambda p0, part, xt=xt, t=t, s=s: process.posterior(p0, xt[part], t, s)
        tokens = tokens.masked_scatter(where, draw(rows, step))
    return tokens


def in_order(
    options: dict,
    hidden: Hidden,
    draw: Draw,
    tokens: Tensor,
    free: Tensor,
    steps: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Eso-LM: a share alpha_0 of the tokens in `steps` steps and a random order, the rest one by one, left to right.

    A call sees the tokens written before it, in the order in which they were, and the masks to write now.
    """
    alpha_0, u = options["alpha_0"], uniforms(tokens, generator)
    place = torch.arange(tokens.shape[1], device=tokens.device)
    step = (u / max(alpha_0, 1e-300) * steps).long().clamp(max=steps - 1)
    step = torch.where(u < alpha_0, step, steps + place).masked_fill(~free, -1)
    diffused = (step < steps).sum(1)
    order = (step + uniforms(tokens, generator)).argsort(1)
    step = step.gather(1, order)
    for now in step[step >= 0].unique():
        width = int((step <= now).sum(1).max())
        places, writing = order[:, :width], step[:, :width] == now
        written = (step < now).sum(1).minimum(diffused)
        rows = hidden(tokens.gather(1, places), order=places, written=written)[writing]
        row = writing.nonzero()[:, 0]
        tokens = tokens.index_put((row, places[writing]), draw(rows))
    return tokens


def by_blocks(
    options: dict,
    hidden: Hidden,
    draw: Draw,
    tokens: Tensor,
    free: Tensor,
    steps: int,
    generator: torch.Generator | None,
) -> Tensor:
    """BD3-LM: blocks from left to right, each in `steps` steps of its own reverse chain; 0: one token a call."""
    for start in range(0, tokens.shape[1], options["block"]):
        stop = min(start + options["block"], tokens.shape[1])
        mine = free[:, start:stop]
        u = uniforms(mine, generator)
        step = (u * steps).long() if steps else u.masked_fill(~mine, torch.inf).argsort(1).argsort(1)
        step = step.masked_fill(~mine, -1)
        for now in step[step >= 0].unique():
            where = step == now
            rows = hidden(tokens[:, :stop])[:, start:][where]
            tokens[:, start:stop] = tokens[:, start:stop].masked_scatter(where, draw(rows))
    return tokens
