"""AR: left to right.

    -log p(x) = sum_l -log p(x_l | x_<l)

`bos` says what precedes a text. "spare": the spare id, so that the loss includes the first token, as the diffusion bounds
do. An id: that one of the vocabulary, as models have it that were trained so elsewhere. "none": nothing; the first token is
then given and not scored, nor is that of a document that attends to itself alone, and writing needs a prompt.
Predicts: p(the next token | all before it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import Family, in_place, no_order, picked, scored_places
from redraft.noise.counter_rng import Key
from redraft.types import Attention, Batch, Network, Noise, TokenLoss, View

SPARE, NONE = "spare", "none"


@dataclass(frozen=True)
class AR(Family):
    """Autoregressive model. Its `nelbo` is the exact negative log-likelihood, of all tokens that something stands before."""

    name: ClassVar[str] = "ar"
    sampler: ClassVar[str] = "left_to_right"
    exported: ClassVar[str] = "left_to_right"
    spare: ClassVar[str] = "bos"
    exact: ClassVar[bool] = True
    vocab: int
    bos: str | int = SPARE

    def __post_init__(self) -> None:
        known = self.bos in (SPARE, NONE) or (type(self.bos) is int and 0 <= self.bos < self.vocab)
        if not known:
            raise UserError(f"family.bos must be spare, none or an id from 0 to {self.vocab - 1}: got {self.bos!r}")

    @property
    def begins(self) -> bool:
        return self.bos != NONE

    @property
    def bos_id(self) -> int | None:
        """What precedes a text; None: nothing does."""
        return self.vocab if self.bos == SPARE else self.bos if isinstance(self.bos, int) else None

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        return self.nelbo(network, batch, key=key)

    def nelbo(self, network: Network, batch: Batch, *, key: Key) -> TokenLoss:
        batch = batch if self.begins else _without_first(batch)
        hidden = network.trunk(self.view(self.shifted(batch.tokens)[:, : batch.tokens.shape[1]]))
        hidden = hidden if self.begins else hidden.roll(1, 1)
        places = scored_places(batch)
        rows, targets = picked(batch, places, hidden, batch.tokens)
        nats = network.nats(rows[0], targets[0])
        return TokenLoss(in_place(nats[None], batch, places), batch.scored)

    def log_p(self, network: Network, tokens: Tensor, t: Tensor | None, order: Tensor | None) -> Tensor:
        """Row l is the token *after* position l."""
        no_order(self.name, order)
        if t is not None:
            raise UserError("family 'ar' has no clock: leave out `t`")
        hidden = network.trunk(self.view(self.shifted(tokens)))[:, int(self.begins) :]
        return network.head(hidden).log_softmax(-1)

    def prior(self, noise: Noise) -> Tensor:
        return torch.full_like(noise("prior"), self.vocab, dtype=torch.int64)

    def shifted(self, tokens: Tensor) -> Tensor:
        """What precedes the text, then the tokens: [B, L + 1], or [B, L] where nothing does."""
        if self.bos_id is None:
            return tokens
        return torch.cat([torch.full_like(tokens[:, :1], self.bos_id), tokens], 1)

    def view(self, tokens: Tensor) -> View:
        """`tokens` [B, Q] as `shifted` made them, the first at position 0."""
        return View(tokens, torch.arange(tokens.shape[1], device=tokens.device)[None], Attention.CAUSAL)


def _without_first(batch: Batch) -> Batch:
    """Each document's first token given: nothing that it could look at stands before it."""
    first = torch.zeros_like(batch.scored)
    first[:, 0] = True
    if batch.documents is not None:
        first[:, 1:] = batch.documents[:, 1:] != batch.documents[:, :-1]
    return replace(batch, scored=batch.scored & ~first, places=None)
