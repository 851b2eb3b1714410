"""Log-probabilities of the tokens of a text, for a left-to-right model: the model's own, at temperature 1.

Other families have no exact ones: what a diffusion model says of a token depends on which others it has seen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from redraft.families.ar import AR
from redraft.hub.model import Model
from redraft.serving.writing import Ids


class TokenLogP(NamedTuple):
    """A token, its log-probability (None: not asked), and the likeliest tokens in its place with theirs."""

    id: int
    log_p: float
    top: list[tuple[int, float]]


@torch.no_grad()
def token_log_p(model: Model, ids: Ids, start: int, top: int) -> list[TokenLogP]:
    """log p(x_l | x_<l) of the tokens from `start` on, nats, and the `top` likeliest in the place of each."""
    family = model.family
    assert isinstance(family, AR)
    if len(ids) <= start:
        return []
    tokens = torch.as_tensor(ids, device=model.device)[None]
    hidden = model.network.trunk(family.view(family.shifted(tokens)[:, :-1]))[0, start:]
    log_p = model.network.head(hidden).log_softmax(-1)
    own = log_p.gather(-1, tokens[0, start:, None])[:, 0].tolist()
    best = log_p.topk(min(top, family.vocab), -1)
    pairs = [list(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return [TokenLogP(*found) for found in zip(ids[start:].tolist(), own, pairs, strict=True)]
