"""The contracts. A class here is abstract; a family is final.

`Family` is what the trainer, the scorer and the library need. `DiffusionFamily` adds the paper's own parts of a
corruption process with a clock, and derives the losses from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.noise import draws
from redraft.noise.draws import Key
from redraft.noise.schedules import SCHEDULES, Schedule
from redraft.registry import FAMILIES, checked_options
from redraft.types import Batch, Network, Noise, Predict, TokenLoss, View

Charge = Callable[[Network, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(network, hidden [B, L, d], xt, x0 [B, L], t [B, 1]) -> nats [B, L]."""


class Family(ABC):
    """A frozen dataclass of hyperparameters; no weights inside. `vocab` is V, the number of text ids."""

    name: ClassVar[str]
    sampler: ClassVar[str]  # default, by name in the registry
    exact: ClassVar[bool] = False  # nelbo is the exact -log p, with no randomness
    vocab: int

    @abstractmethod
    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        """What training descends, in nats; `progress` in [0, 1] is the share of the budget spent."""

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


class DiffusionFamily(Family):
    """A family with a clock: t in [0, 1], and a network that sees one corrupted text and predicts the clean one.

    Each token is corrupted alone, q(x_t | x_0) = alpha_t x_0 + (1 - alpha_t) pi (noise/kernels.py), and `prior` draws
    from pi. Samplers build on that: a corrupted token is the clean one, or it has forgotten it.
    """

    schedule: Schedule

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
        """

    @abstractmethod
    def view(self, tokens: Tensor, t: Tensor) -> View:
        """What the network sees of `tokens` [B, L] at times `t` [B, 1]."""

    @abstractmethod
    def interpret(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """[..., V] logits at [...] visible tokens -> log p(x0 | tokens), normalised."""

    @abstractmethod
    def token_nelbo(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The bound's integrand at time t, nats [B, L]."""

    @abstractmethod
    def token_loss(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """What training descends at time t, nats [B, L]."""

    @abstractmethod
    def prior_nats(self) -> float:
        """KL(q(x_1 | x_0) | prior) of one token, nats: what the bound pays for starting from the prior."""

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        return self._charged(self.token_loss, network, batch, key)

    def nelbo(self, network: Network, batch: Batch, *, key: Key) -> TokenLoss:
        paid = self._charged(self.token_nelbo, network, batch, key)
        return TokenLoss(paid.nats + self.prior_nats() * batch.scored, batch.scored)

    def log_p(self, network: Network, tokens: Tensor, t: Tensor | None, order: Tensor | None) -> Tensor:
        no_order(self.name, order)
        at = torch.zeros(len(tokens), 1, device=tokens.device) if t is None else t.reshape(-1, 1)
        hidden = network.trunk(self.view(tokens, at))
        return self.interpret(network.head(hidden), tokens)

    def _charged(self, charge: Charge, network: Network, batch: Batch, key: Key) -> TokenLoss:
        t = draws.times(key.fold("time"), batch.index)[:, None]
        noise = draws.field(key, batch.index, batch.tokens.shape[1])
        xt = self.corrupt(batch.tokens, t, noise).where(batch.scored, batch.tokens)
        hidden = network.trunk(self.view(xt, t))
        nats = charge(network, hidden, xt, batch.tokens, t)
        return TokenLoss(nats.where(batch.scored, 0.0), batch.scored)


class Absorbing(DiffusionFamily):
    """pi = [MASK], and `view` ignores the clock: a visible token stays, and when a hidden one shows up is chance alone."""

    @property
    @abstractmethod
    def mask_id(self) -> int: ...


def masked_nats(network: Network, hidden: Tensor, hide: Tensor, x0: Tensor) -> Tensor:
    """Cross-entropy [B, L] at the hidden positions, zero elsewhere; only their rows are headed."""
    nats = hidden.new_zeros(x0.shape)
    return nats.masked_scatter(hide, network.nats(hidden[hide], x0[hide]).to(nats.dtype))


def no_order(name: str, order: Tensor | None) -> None:
    if order is not None:
        raise UserError(f"family {name!r} predicts in no particular order: leave out `order` (only esolm takes one)")


def full_view(tokens: Tensor, sigma: Tensor | None = None) -> View:
    """Everything sees everything, each token in its place."""
    return View(tokens, torch.arange(tokens.shape[1], device=tokens.device)[None], sigma=sigma)


def build(name: str, options: dict[str, Any], vocab: int) -> Family:
    """The family of that name over V = `vocab` text ids; schedules may be given by name."""
    settings = checked_options("family", FAMILIES, name, options)
    if isinstance(settings.get("schedule"), str):
        if settings["schedule"] not in SCHEDULES:
            raise UserError(f"unknown schedule {settings['schedule']!r}. Known: {', '.join(SCHEDULES)}.")
        settings["schedule"] = SCHEDULES[settings["schedule"]]()
    return FAMILIES[name].load()(vocab=vocab, **settings)
