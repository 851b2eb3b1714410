"""A new family in one class: corruption towards a mixture of [MASK] and uniform, straight from the kernels' definitions.

It shows that a family is one class, and it is the slow reference that closed forms are held against: with the law
pi = [MASK] it must be MDLM, with pi uniform Duo.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from redraft.families.base import DiffusionFamily, full_view
from redraft.noise import kernels
from redraft.noise.counter_rng import Key, categorical
from redraft.noise.schedules import Linear, Schedule
from redraft.types import Batch, Network, Noise, Predict, TokenLoss, View
from tests.rate_bound import rate_bound

MASK_HEAVY = (0.4 / 3, 0.4 / 3, 0.4 / 3, 0.6)


@dataclass(frozen=True)
class HybridFamily(DiffusionFamily):
    """`pi`: the stationary law over K >= V states."""

    name: ClassVar[str] = "hybrid"
    sampler: ClassVar[str] = "ancestral"
    vocab: int
    pi: tuple[float, ...]
    schedule: Schedule = field(default_factory=Linear)

    def law(self) -> Tensor:
        return torch.tensor(self.pi, dtype=torch.float64)

    def states(self, p0: Tensor) -> Tensor:
        """[..., V] over text ids -> [..., K] over states."""
        return torch.nn.functional.pad(p0.double(), (0, len(self.pi) - p0.shape[-1]))

    def marginal(self, x0: Tensor, t: Tensor) -> Tensor:
        clean = torch.nn.functional.one_hot(x0, len(self.pi)).double()
        return kernels.marginal(clean, self.schedule(t)[0].expand_as(x0), self.law())

    def posterior(self, p0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        alpha_t, alpha_s = (self.schedule(u)[0].expand_as(xt) for u in (t, s))
        return kernels.posterior(self.states(p0), xt, alpha_t, alpha_s, self.law())

    def corrupt(self, x0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        return self._draw(self.marginal(x0, t), noise("corrupt"))

    def step(self, predict: Predict, xt: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        p0 = predict(torch.arange(xt.numel())).exp().view(*xt.shape, -1)
        return self._draw(self.posterior(p0, xt, t, s), noise("move"))

    def view(self, tokens: Tensor, t: Tensor) -> View:
        return full_view(tokens, sigma=-self.schedule(t)[0].log())

    def interpret(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits.log_softmax(-1)

    def token_nelbo(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        p0 = self.states(self.interpret(network.head(hidden), xt).exp())
        alpha, dalpha = (a.expand_as(xt) for a in self.schedule(t))
        return rate_bound(p0, xt, x0, alpha, dalpha, self.law())

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        return self.per_token_loss(self.token_nelbo, network, batch, key, self.training_times)

    def prior_nats(self) -> float:
        return 0.0

    def sample_noise(self, t: Tensor, noise: Noise) -> Tensor:
        u = noise("prior")
        return self._draw(self.law().expand(*u.shape, -1), u)

    def _draw(self, p: Tensor, u: Tensor) -> Tensor:
        return categorical(p.flatten(0, -2).log(), u.flatten()).view_as(u)
