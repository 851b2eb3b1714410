"""Abstract base classes of the model families: `Family`, `DiffusionFamily`, `Absorbing` and `AnyOrder`.

`Family` is what the trainer, the scorer and the library need. `DiffusionFamily` adds the paper's own parts of a
corruption process with a clock, and derives the losses from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.network.device import flat_places, sent
from redraft.network.head import summed
from redraft.network.wrapped import Wrapped
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.noise.kernels import marginal
from redraft.noise.schedules import SCHEDULES, Schedule
from redraft.noise.time_density import TimeDensity, TimeOption, Uniform
from redraft.registry import FAMILIES, checked_options, find
from redraft.types import Batch, Network, Noise, Predict, TokenLoss, View

PROCESSES: dict[str, tuple[str, ...]] = {
    "left_to_right": (),
    "absorbing": ("schedule",),
    "uniform": ("schedule",),
    "hybrid": ("uniform",),
    "stationary": ("uniform", "schedule"),
    "ordered": ("alpha_0", "variant"),
    "blocks": ("block",),
}
"""Sampling processes that exported code (hub/export/transformers_code) implements, and the family settings that each uses."""
DECIDING = ("view", "interpret", "log_p", "posterior", "step", "sample_noise", "prior", "sampler")

PerTokenLoss = Callable[[Network, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(network, hidden [B, L, d], xt, x0, t [B, L]) -> nats [B, L]; rows and tokens as `picked` gives them."""


class Family(ABC):
    """A frozen dataclass of hyperparameters; no weights inside. `vocab` is V, the number of text ids."""

    name: ClassVar[str]
    sampler: ClassVar[str]  # default, by name in the registry
    exact: ClassVar[bool] = False  # nelbo is the exact -log p, with no randomness
    clocked: ClassVar[bool] = False  # whether its network reads the time
    spare: ClassVar[str] = "mask"  # what id V is to it: mask, bos, or "" where it is never seen
    settles: ClassVar[bool] = True  # a token that its reverse chain has written stays; False: any may change to the end
    exported: ClassVar[str] = ""  # its process as exported folders name it: a key of `PROCESSES`; "": they have none
    vocab: int

    @property
    def mask_id(self) -> int:
        """[MASK], of a family that has it: the spare id V."""
        return self.vocab

    @property
    def begins(self) -> bool:
        """Whether the first token of a text can be scored: something stands before it, or it may be hidden as any other."""
        return True

    @abstractmethod
    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        """What training descends, in nats; `progress` in [0, 1] is the share of the budget spent. `network` is a
        `TeacherStudent` pair where the registry says that the family has teachers."""

    @abstractmethod
    def nelbo(self, network: Network, batch: Batch, *, key: Key) -> TokenLoss:
        """What is reported: an unbiased draw of an upper bound on -log p(scored tokens | the others), in nats."""

    @abstractmethod
    def log_p(self, network: Network, tokens: Tensor, t: Tensor | None, order: Tensor | None) -> Tensor:
        """The network's prediction [B, L, V], normalised log p(x0 | tokens), in the positions of `tokens`.

        `t` [B]: None means t = 0, and matters to a family with a clock alone. `order` [B, L]: Eso-LM alone.
        """

    @abstractmethod
    def prior(self, noise: Noise) -> Tensor:
        """[B, L] ids of an unwritten canvas."""


class DiffusionFamily(TimeOption, Family):
    """A family with a clock: t in [0, 1], and a network that sees one corrupted text and predicts the clean one.

    Each token is corrupted alone, q(x_t | x_0) = alpha_t x_0 + (1 - alpha_t) pi_t (noise/kernels.py), and `sample_noise` draws
    from pi_t. Samplers rely on this form: x_t is either x_0, or a draw from pi_t that is independent of x_0.
    """

    settles: ClassVar[bool] = False
    schedule: Schedule
    grid: int = 0  # T: the bound is that of a chain with times 1/T, 2/T, ..., 1; 0: of continuous time
    bound_times: ClassVar[TimeDensity] = Uniform()  # what the bound draws its times from, unless told otherwise

    @abstractmethod
    def marginal(self, x0: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x_0) as probabilities over K states, by definition: [B, L] ids, [B, 1] -> [B, L, K]."""

    @abstractmethod
    def posterior(self, p0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """q(x_s | x_t, x_0 ~ p0), s < t: [B, L, V], [B, L], [B, 1], [B, 1] -> [B, L, K]."""

    @abstractmethod
    def corrupt(self, x0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """A draw from `marginal`: [B, L] ids."""

    @abstractmethod
    def step(self, predict: Predict, xt: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        """A draw from `posterior` that asks for no more rows of the prediction than it needs: [B, L] ids.

        `s` [B, 1] or [B, L]: every position may go to a time of its own. Where s = t it stays, and nothing is predicted.
        Times and noise are the host's, `xt` the device's: what noise alone decides is decided without waiting.
        """

    def view(self, tokens: Tensor, t: Tensor) -> View:
        """What the network sees of `tokens` [B, L] at times `t` [B, 1]: all of them, both ways, and the clock."""
        return full_view(tokens, sigma=clock(self.schedule(t)[0]))

    def interpret(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """[..., V] logits at [...] visible tokens -> log p(x0 | tokens), normalised."""
        return logits.log_softmax(-1)

    @abstractmethod
    def token_nelbo(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The bound's integrand at times t [B, 1] or [B, L], nats [B, L]."""

    @abstractmethod
    def sample_noise(self, t: Tensor, noise: Noise) -> Tensor:
        """A draw from pi_t, what a token at time `t` [B, 1] is when it has forgotten the text: [B, L] ids."""

    @abstractmethod
    def prior_nats(self) -> float:
        """KL(q(x_1 | x_0) | prior) of one token, nats: what the bound pays for starting from the prior."""

    def prior(self, noise: Noise) -> Tensor:
        return self.sample_noise(torch.ones_like(noise("prior")[:, :1]), noise)

    def nelbo(self, network: Network, batch: Batch, *, key: Key) -> TokenLoss:
        paid = self.per_token_loss(self.token_nelbo, network, batch, key, self.bound_times)
        return TokenLoss(paid.nats + self.prior_nats() * batch.scored, batch.scored)

    def log_p(self, network: Network, tokens: Tensor, t: Tensor | None, order: Tensor | None) -> Tensor:
        no_order(self.name, order)
        at = torch.zeros(len(tokens), 1, device=tokens.device) if t is None else t.reshape(-1, 1)
        hidden = network.trunk(self.view(tokens, at))
        return self.interpret(network.head(hidden), tokens)

    @property
    def training_times(self) -> TimeDensity:
        """What training draws the times of a bound from: those of the option `time`, or else the bound's own."""
        return self.bound_times if self.time == "uniform" else self.density

    def per_token_loss(
        self,
        charge: PerTokenLoss,
        network: Network,
        batch: Batch,
        key: Key,
        density: TimeDensity,
        weighted: bool = True,
    ) -> TokenLoss:
        """`charge` is the loss per token, for one x_t per row at its own t, drawn from `density`; logits are computed at
        scored positions only. `weighted` by 1 / density, its mean is that over uniform t."""
        places = scored_places(batch)
        u = counter_rng.times(key.fold_in("time"), batch.index)[:, None]
        t, weight = density.times(u), density.weight(u) if weighted else None
        t = (t * self.grid).ceil() / self.grid if self.grid else t  # rounded up to the next of 1/T, ..., 1
        noise = counter_rng.field(key, batch.index, batch.tokens.shape[1])
        xt = self.corrupt(batch.tokens, t, noise).where(batch.scored, batch.tokens)
        hidden = network.trunk(self.view(xt, t))
        if weight is None:
            nats = charge(network, *picked(batch, places, hidden, xt, batch.tokens, t))
        else:
            with summed(False):  # the losses are weighted afterwards
                nats = charge(network, *picked(batch, places, hidden, xt, batch.tokens, t))
            nats = nats * picked(batch, places, weight)[0].to(nats.dtype)
        return TokenLoss(in_place(nats, batch, places), batch.scored)


class Absorbing(DiffusionFamily):
    """pi = [MASK]: a token survives to time t with probability alpha(t), an unmasked token equals x_0, and the time at
    which a mask is revealed does not depend on the network. Used by MDLM, SEDD and D3PM, whose inputs and losses differ.
    Visible tokens are carried over and [MASK] is never predicted (SUBS).

    The schedule must end in alpha(1) = 0: else the prior term KL(q(x_1 | x_0) | prior) of the bound is infinite.
    """

    settles: ClassVar[bool] = True

    def marginal(self, x0: Tensor, t: Tensor) -> Tensor:
        states = torch.eye(self.vocab + 1, dtype=t.dtype, device=t.device)
        return marginal(states[x0], self.schedule(t)[0].expand_as(x0), states[self.mask_id])

    def posterior(self, p0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Stay if visible; if masked, v with (alpha_s - alpha_t) / (1 - alpha_t) p0_v, else [MASK]."""
        reveal = self.reveal(t, s)[..., None]
        masked = torch.cat([reveal * p0, (1 - reveal).expand(*p0.shape[:-1], 1)], -1)
        stay = torch.nn.functional.one_hot(xt, self.vocab + 1).to(p0.dtype)
        return masked.where((xt == self.mask_id)[..., None], stay)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        return x0.masked_fill(noise("corrupt") >= self.schedule(t)[0], self.mask_id)

    def step(self, predict: Predict, xt: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        """Which positions move does not depend on the network: draw that first, then predict those rows alone."""
        moves = sent((noise("move") < self.reveal(t, s)).expand(xt.shape), xt.device)
        places = flat_places((xt == self.mask_id) & moves)
        if not len(places):
            return xt
        drawn = predict.draw(places, sent(noise("token").expand(xt.shape), xt.device).flatten()[places])
        return xt.flatten().index_copy(0, places, drawn).view_as(xt)

    def interpret(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return carry_over(logits.log_softmax(-1), tokens)

    def sample_noise(self, t: Tensor, noise: Noise) -> Tensor:
        return torch.full_like(noise("prior"), self.mask_id, dtype=torch.int64)

    def prior_nats(self) -> float:
        return 0.0

    def reveal(self, t: Tensor, s: Tensor) -> Tensor:
        """P(a token hidden at t is visible at s)."""
        alpha_t, alpha_s = self.schedule(t)[0], self.schedule(s)[0]
        return (alpha_s - alpha_t) / (1 - alpha_t)

    def weight(self, t: Tensor) -> Tensor:
        """The bound's weight on the cross-entropy of a masked token at time `t`: float64, of the shape of `t`.

        -alpha' / (1 - alpha), 1/t for the linear schedule; on a grid, T times the chance of showing up in the next step,
        which is the same in the limit (arXiv:2107.03006, appendix A; arXiv:2406.07524, eq. 8).
        """
        if self.grid:
            return self.grid * self.reveal(t, t - 1 / self.grid)
        alpha, dalpha = self.schedule(t)
        return -dalpha / (1 - alpha)


class AnyOrder(ABC):
    """A family whose likelihood is a mean over orders of generation, each of which can be scored exactly."""

    @abstractmethod
    def chain_nats(self, network: Network, x0: Tensor, scored: Tensor, order: Tensor) -> Tensor:
        """-log p(x | order) by token [B, L], unscored tokens given. `order` [B, L]: permutations, the given first."""

    @abstractmethod
    def chain_passes(self, scored: int) -> int:
        """Times that `chain_nats` reads a row of so many scored tokens."""

    @abstractmethod
    def orders(self, scored: Tensor, noise: Noise) -> Tensor:
        """[B, L] orders, drawn as the family generates, in the limit of one token a call; given tokens first."""

    @abstractmethod
    def order_refusal(self, kind: str) -> str | None:
        """Why orders of a kind (left_to_right, random: uniformly, generative: by `orders`) cannot be scored, in a few words;
        None when they can."""


@dataclass(frozen=True)
class TeacherStudent(Wrapped):
    """A network, and the frozen one that it learns from: what a trainer hands to the loss of a family that has teachers."""

    network: Network
    teacher: Network


def exported_process(family: Family) -> str:
    """The process that the family states for exported folders; "" where it states none, or where a class redefines part of
    the sampling process (`DECIDING`) without setting `exported` again, so that the exported code might no longer match."""
    for kind in type(family).__mro__:
        if "exported" in vars(kind):
            return kind.exported  # type: ignore[attr-defined]
        if any(name in vars(kind) for name in DECIDING):
            return ""
    return ""


def family_class(name: str) -> type[Family]:
    """The class of that name, for the facts that it states."""
    return find("family", FAMILIES, name).load()


def carry_over(log_p: Tensor, tokens: Tensor) -> Tensor:
    """SUBS: a visible token is its own prediction. [..., V] log-probabilities, [...] ids; id V is [MASK]."""
    vocab = log_p.shape[-1]
    visible = (tokens < vocab)[..., None]
    own = tokens.clamp(max=vocab - 1)[..., None]
    certain = log_p.gather(-1, own).masked_fill(visible, 0.0)
    return log_p.masked_fill(visible, -torch.inf).scatter(-1, own, certain)


def check_absorbing(schedule: Schedule) -> None:
    left = float(schedule(torch.ones((), dtype=torch.float64))[0])
    if left > 1e-12:
        raise UserError(
            f"family.schedule must leave no text at t = 1 where the prior is all [MASK], got one that leaves {left:.3g}: "
            f"the bound would be infinite. Try: linear, cosine"
        )


def check_grid(grid: int) -> None:
    if grid < 0:
        raise UserError(f"family.grid must be a number of steps, or 0 for continuous time: got {grid}")


def check_shift(shift: object) -> None:
    if not isinstance(shift, bool):
        raise UserError(f"family.shift must be true or false: got {shift!r}")


def masked_cross_entropy(
    network: Network, hidden: Tensor, hide: Tensor, x0: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy [B, L] at the hidden positions, zero elsewhere; only their rows are headed. Times `weight`, [B, L] or
    [B, 1]."""
    places = flat_places(hide)
    weights = None if weight is None else weight.expand(hide.shape).flatten().index_select(0, places)
    rows, targets = (part.flatten(0, 1).index_select(0, places) for part in (hidden, x0))
    nats = network.nats(rows, targets, weights)
    return hidden.new_zeros(x0.numel()).index_copy(0, places, nats.to(hidden.dtype)).view(x0.shape)


def scored_places(batch: Batch) -> Tensor | None:
    """[R] where the scored tokens are in the flat batch; None: they are all scored. An accelerator is waited for, unless the
    batch knows them from the host."""
    places = flat_places(batch.scored) if batch.places is None else batch.places
    return None if len(places) == batch.scored.numel() else places


def picked(batch: Batch, places: Tensor | None, *parts: Tensor) -> list[Tensor]:
    """The R positions at `places`, as one row: each part [B, L, ...] or [B, 1] -> [1, R, ...]."""
    flat = (part.expand(*batch.tokens.shape, *part.shape[2:]).flatten(0, 1) for part in parts)
    return [(part if places is None else part.index_select(0, places))[None] for part in flat]


def in_place(nats: Tensor, batch: Batch, places: Tensor | None) -> Tensor:
    """What `picked` took, back at its positions: [1, R] -> [B, L], zero elsewhere."""
    if places is None:
        return nats.view(batch.tokens.shape)
    return nats.new_zeros(batch.tokens.numel()).index_copy(0, places, nats[0]).view(batch.tokens.shape)


def no_order(name: str, order: Tensor | None) -> None:
    if order is not None:
        raise UserError(f"family {name!r} predicts in no particular order: leave out `order` (only esolm takes one)")


def full_view(tokens: Tensor, sigma: Tensor | None = None, shifted: bool = False) -> View:
    """Everything sees everything, each token in its place."""
    return View(tokens, torch.arange(tokens.shape[1], device=tokens.device)[None], sigma=sigma, shifted=shifted)


def clock(alpha: Tensor) -> Tensor:
    """sigma = -log alpha, the noise level that a network is conditioned on, with alpha clamped to at least 1e-4: smaller ones
    are too rare in training for the network to be reliable there, and samplers start at the smallest alpha."""
    return -alpha.clamp(min=1e-4).log()


def build(name: str, options: dict[str, Any], vocab: int) -> Family:
    """The family of that name over V = `vocab` text ids; schedules may be given by name."""
    settings = checked_options("family", FAMILIES, name, options)
    if isinstance(settings.get("schedule"), str):
        if settings["schedule"] not in SCHEDULES:
            raise UserError(f"unknown schedule {settings['schedule']!r}. Known: {', '.join(SCHEDULES)}.")
        settings["schedule"] = SCHEDULES[settings["schedule"]]()
    family: Family = FAMILIES[name].load()(vocab=vocab, **settings)
    if isinstance(family, TimeOption):
        _ = family.density  # refused here, before work begins
    return family
