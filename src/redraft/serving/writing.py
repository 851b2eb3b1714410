"""The text of one row as a client may see it: what can no longer change, from the left, up to its end or a stop string; and
the log-probabilities of its tokens, where the model has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from redraft.families.ar import AR
from redraft.hub.model import Model
from redraft.text.tokenizers.tokenizer import Tokenizer

Ids = NDArray[np.int64]
DAMAGED = "\ufffd"  # what a character is until all of its tokens are there


@dataclass(frozen=True)
class Frame:
    """A canvas on its way: ids [L], those from V on not written; passes of the network and seconds it took so far."""

    number: int
    ids: Ids
    calls: int
    seconds: float


class Writing:
    """`before` and `after`: the ids of prompt and suffix. `once`: the sampler never changes what it wrote, so that a token is
    final when it is there; otherwise none is before the end. `text` is what may be sent of the completion, without the
    prompt; `reason` is why it ended: "stop" (an end of document, or one of `stops`) or "length"."""

    def __init__(self, tokenizer: Tokenizer, before: Ids, after: Ids, once: bool, stops: Sequence[str], live: bool):
        self.tokenizer, self.before, self.after, self.once = tokenizer, before, after, once
        self.stops, self.live = tuple(stops), live
        self.given = tokenizer.decode(before)
        self.ids, self.known, self.text = before[:0], -1, ""
        self.reason: str | None = None

    def see(self, row: Ids, done: bool) -> bool:
        """Take in a canvas [L] of the row, whose sampler is `done` or goes on. Whether the text has ended."""
        body = row[len(self.before) : len(row) - len(self.after)]
        known = len(body) if done else self._written(body)
        if known == self.known and not done:
            return False
        self.known = known
        end = np.flatnonzero(body[:known] == self.tokenizer.eos)[:1]
        self.ids = body[: end[0] + 1 if len(end) else known].copy()
        ended = done or len(end) > 0 or known == len(body)
        if ended:
            self.reason = "stop" if len(end) else "length"
        if ended or self.live or self.stops:
            self._read(ended)
        return self.reason is not None

    def _written(self, body: Ids) -> int:
        """How many tokens from the left are final."""
        if not self.once:
            return 0
        gaps = np.flatnonzero(body >= self.tokenizer.size)
        return int(gaps[0]) if len(gaps) else len(body)

    def _read(self, ended: bool) -> None:
        whole = self.tokenizer.decode(np.concatenate([self.before, self.ids]))
        fits = whole.startswith(self.given)
        text = whole[len(self.given) :] if fits else self.tokenizer.decode(self.ids)
        cut = min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            self.text, self.reason = text[:cut], "stop"
        elif ended:
            self.text = text
        else:
            text = text.rstrip(DAMAGED)
            self.text = text[: len(text) - max((_begun(text, stop) for stop in self.stops), default=0)]


def _begun(text: str, stop: str) -> int:
    """Characters at the end of a text that may be the beginning of a stop string."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)


class TokenLogP(NamedTuple):
    """A token, its log-probability in nats (None: nothing stands before it), and the likeliest in its place with theirs."""

    id: int
    log_p: float | None
    top: list[tuple[int, float]]


@torch.no_grad()
def token_log_p(model: Model, ids: Ids, start: int, top: int) -> list[TokenLogP]:
    """log p(x_l | x_<l) of the tokens from `start` on, by a left-to-right model at temperature 1, and the `top` likeliest in
    the place of each. Other families have none: what a diffusion model says of a token depends on which others it has seen."""
    family = model.family
    assert isinstance(family, AR)
    lead = int(family.begins)
    first = max(start, 1 - lead)  # the first token that something stands before
    out = [TokenLogP(int(ids[place]), None, []) for place in range(start, min(first, len(ids)))]
    if len(ids) <= first:
        return out
    tokens = torch.as_tensor(ids, device=model.device)[None]
    hidden = model.network.trunk(family.view(family.shifted(tokens)[:, :-1]))[0, first + lead - 1 :]
    log_p = model.network.head(hidden).log_softmax(-1)
    own = log_p.gather(-1, tokens[0, first:, None])[:, 0].tolist()
    best = log_p.topk(min(top, family.vocab), -1)
    pairs = [list(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return out + [TokenLogP(*found) for found in zip(ids[first:].tolist(), own, pairs, strict=True)]
