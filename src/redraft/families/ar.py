"""AR: left to right.

    -log p(x) = sum_l -log p(x_l | x_<l)

The text is preceded by BOS (the spare id), so the loss includes the first token, as the diffusion bounds do.
Predicts: p(the next token | all before it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import Family, in_place, no_order, picked, scored_places
from redraft.noise.counter_rng import Key
from redraft.types import Attention, Batch, Network, Noise, TokenLoss, View


@dataclass(frozen=True)
class AR(Family):
    """Autoregressive model. Its `nelbo` is the exact negative log-likelihood."""

    name: ClassVar[str] = "ar"
    sampler: ClassVar[str] = "left_to_right"
    exported: ClassVar[str] = "left_to_right"
    spare: ClassVar[str] = "bos"
    exact: ClassVar[bool] = True
    vocab: int

    @property
    def bos_id(self) -> int:
        return self.vocab

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        return self.nelbo(network, batch, key=key)

    def nelbo(self, network: Network, batch: Batch, *, key: Key) -> TokenLoss:
        hidden = network.trunk(self.view(self.shifted(batch.tokens)[:, :-1]))
        places = scored_places(batch)
        rows, targets = picked(batch, places, hidden, batch.tokens)
        nats = network.nats(rows[0], targets[0])
        return TokenLoss(in_place(nats[None], batch, places), batch.scored)

    def log_p(self, network: Network, tokens: Tensor, t: Tensor | None, order: Tensor | None) -> Tensor:
        """Row l is the token *after* position l."""
        no_order(self.name, order)
        if t is not None:
            raise UserError("family 'ar' has no clock: leave out `t`")
        hidden = network.trunk(self.view(self.shifted(tokens)))[:, 1:]
        return network.head(hidden).log_softmax(-1)

    def prior(self, noise: Noise) -> Tensor:
        return torch.full_like(noise("prior"), self.bos_id, dtype=torch.int64)

    def shifted(self, tokens: Tensor) -> Tensor:
        """BOS, then the tokens: [B, L + 1]."""
        return torch.cat([torch.full_like(tokens[:, :1], self.bos_id), tokens], 1)

    def view(self, tokens: Tensor) -> View:
        """`tokens` [B, Q] begin with BOS, at position 0."""
        return View(tokens, torch.arange(tokens.shape[1], device=tokens.device)[None], Attention.CAUSAL)
