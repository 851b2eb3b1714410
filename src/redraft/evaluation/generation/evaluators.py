"""Evaluator models (`judge` in flags and records): exact likelihoods of generated text, for generative perplexity.

    RedraftEvaluator    a redraft model: rows of its own token ids are scored as they are, others as text
    HFEvaluator         any causal language model of `transformers`; evaluator_files.py reads folders, GGUF and llama2.c files

Conventions. A text is what its row decodes to: the end of a document leaves nothing behind, and bytes are those of that text
in UTF-8. A judge with another tokenizer cuts the text anew, so nats per token are per *its* token; nats per byte compare
across judges. The judge's BOS (or EOS) is put before a text and not scored; every token of the text is. Text
beyond the judge's context is scored in further windows, each on its own, so nothing is cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from redraft.errors import UserError
from redraft.families.ar import AR
from redraft.hub.model import Model
from redraft.network.head import wide
from redraft.noise.counter_rng import Key
from redraft.text.tokenizers.tokenizer import Tokenizer
from redraft.types import Batch

TOKENS_AT_ONCE = 4096  # of a batch, padding included: bounds the logits


@dataclass(frozen=True)
class Identity:
    """Which judge it was: enough to find the very same weights again."""

    name: str
    kind: str  # 'redraft', 'transformers', 'gguf' or 'llama2.c'
    weights: str  # sha256 of the weights, or the revision of a hub model
    dtype: str
    tokenizer: str
    source: bool = False  # the training text was drawn from this model


@dataclass(frozen=True)
class Scores:
    """Of n texts: `nats` [n] each in all, float64, over `tokens` [n] of the judge and `bytes` [n] of UTF-8."""

    nats: Tensor
    tokens: Tensor
    bytes: Tensor

    def per_token(self) -> tuple[float, float]:
        """Nats per token of the judge over all texts, and its standard error."""
        return ratio(self.nats, self.tokens)

    def per_byte(self) -> tuple[float, float]:
        return ratio(self.nats, self.bytes)


def ratio(top: Tensor, bottom: Tensor) -> tuple[float, float]:
    """sum(top) / sum(bottom) over n >= 2 texts, and its standard error by the delta method."""
    top, bottom = top.double(), bottom.double()
    if not bottom.sum():
        raise UserError("the samples hold no text that a judge could score")
    value = top.sum() / bottom.sum()
    left = top - value * bottom  # their mean is zero
    return float(value), float((left.square().sum() / (len(top) * (len(top) - 1))).sqrt() / bottom.mean())


def mean(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """The mean of n >= 2 values, and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)


def refuse_bound(family: str, exact: bool) -> None:
    if not exact:
        raise UserError(f"a judge must have an exact likelihood; {family!r} has a bound. Try: ar")


class Evaluator(Protocol):
    @property
    def identity(self) -> Identity: ...

    def score(self, tokens: Tensor, tokenizer: Tokenizer) -> Scores:
        """-log p of the texts in rows [n, L] of `tokenizer`'s ids."""
        ...

    def features(self, tokens: Tensor, tokenizer: Tokenizer) -> Tensor:
        """[n, d] float32: the last hidden state after each text (of its last window), for MAUVE."""
        ...


def texts(tokens: Tensor, tokenizer: Tokenizer) -> list[str]:
    """What the rows decode to, [n, L] ids."""
    return [tokenizer.decode(row) for row in tokens.tolist()]


def byte_counts(of: Sequence[str]) -> Tensor:
    return torch.tensor([len(text.encode(errors="replace")) for text in of])


@dataclass(frozen=True)
class RedraftEvaluator:
    """A redraft model of a family whose likelihood is exact."""

    model: Model
    identity: Identity

    @staticmethod
    def of(model: Model, name: str = "", weights: str = "") -> RedraftEvaluator:
        refuse_bound(model.family.name, model.family.exact)
        dtype = str(model.network.compute).removeprefix("torch.")
        return RedraftEvaluator(model, Identity(name, "redraft", weights, dtype, model.tokenizer.name))

    @torch.no_grad()
    def score(self, tokens: Tensor, tokenizer: Tokenizer) -> Scores:
        rows, of = self._rows(tokens, tokenizer), texts(tokens, tokenizer)
        nats = by_windows(rows, self.model.length, self._nats, self.model.device)
        free = 0 if self.model.family.begins else self.model.length  # else each window's first token is given
        counts = [len(row) - (math.ceil(len(row) / free) if free else 0) for row in rows]
        return Scores(nats, torch.tensor(counts), byte_counts(of))

    @torch.no_grad()
    def features(self, tokens: Tensor, tokenizer: Tokenizer) -> Tensor:
        family, network = self.model.family, self.model.network
        assert isinstance(family, AR)
        ends = [row[-self.model.length :] for row in self._rows(tokens, tokenizer)]
        shifted = [family.shifted(torch.tensor([end], device=self.model.device)) for end in ends]
        return torch.stack([network.trunk(family.view(row))[0, -1].float().cpu() for row in shifted])

    def _rows(self, tokens: Tensor, tokenizer: Tokenizer) -> list[list[int]]:
        own = self.model.tokenizer
        if own.fingerprint == tokenizer.fingerprint:
            return tokens.tolist()
        return [own.encode(text).tolist() for text in texts(tokens, tokenizer)]

    def _nats(self, tokens: Tensor, paid: Tensor) -> Tensor:
        batch = Batch(tokens, paid, torch.arange(len(tokens), device=tokens.device))
        return self.model.family.nelbo(self.model.network, batch, key=Key.of(0)).nats.double().sum(1)


@dataclass(frozen=True)
class HFEvaluator:
    """A causal language model of `transformers`. `encode`: a text's ids, nothing added; `begin`: the id put before it."""

    network: Any
    encode: Callable[[str], list[int]]
    begin: int
    context: int
    identity: Identity

    @torch.no_grad()
    def score(self, tokens: Tensor, tokenizer: Tokenizer) -> Scores:
        of = texts(tokens, tokenizer)
        rows = [self.encode(text) for text in of]
        nats = by_windows(rows, self.context - 1, self._nats, self.network.device)
        return Scores(nats, torch.tensor([len(row) for row in rows]), byte_counts(of))

    @torch.no_grad()
    def features(self, tokens: Tensor, tokenizer: Tokenizer) -> Tensor:
        ends = [[self.begin, *self.encode(text)[1 - self.context :]] for text in texts(tokens, tokenizer)]
        batches = (torch.tensor([end], device=self.network.device) for end in ends)
        hidden = [self.network(row, output_hidden_states=True).hidden_states[-1] for row in batches]
        return torch.stack([state[0, -1].float().cpu() for state in hidden])

    def _nats(self, tokens: Tensor, paid: Tensor) -> Tensor:
        """Padding is on the right, where a causal model does not look."""
        seen = torch.cat([torch.full_like(tokens[:, :1], self.begin), tokens[:, :-1]], 1)
        logits = self.network(seen, use_cache=False).logits
        nats = F.cross_entropy(logits.to(wide(logits.dtype)).transpose(1, 2), tokens, reduction="none")
        return nats.where(paid, 0.0).double().sum(1)


def by_windows(
    rows: Sequence[Sequence[int]], size: int, nats: Callable[[Tensor, Tensor], Tensor], device: torch.device
) -> Tensor:
    """Nats [n], float64, of each row of ids: cut into windows of at most `size`, padded on the right, scored in batches.

    `nats`: ids and what is paid for, both [B, W] -> [B].
    """
    windows = [(i, row[at : at + size]) for i, row in enumerate(rows) for at in range(0, len(row), size)]
    windows.sort(key=lambda window: -len(window[1]))
    total = torch.zeros(len(rows), dtype=torch.float64)
    while windows:
        width = len(windows[0][1])
        count = max(1, TOKENS_AT_ONCE // width)
        batch, windows = windows[:count], windows[count:]
        tokens, paid = torch.zeros(len(batch), width, dtype=torch.int64), torch.zeros(len(batch), width).bool()
        for place, (_, ids) in enumerate(batch):
            tokens[place, : len(ids)], paid[place, : len(ids)] = torch.tensor(ids), True
        owners = torch.tensor([i for i, _ in batch])
        total.index_add_(0, owners, nats(tokens.to(device), paid.to(device)).cpu())
    return total
