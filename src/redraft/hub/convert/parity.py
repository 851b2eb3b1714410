"""Parity check of a converted model against reference logits: `tokens`, optional `sigma` and `order`, and `logits`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.ar import AR
from redraft.families.base import Family, full_view
from redraft.families.bd3lm import BD3LM
from redraft.families.esolm import EsoLM
from redraft.files import whereabouts
from redraft.hub.convert.sources import read_safetensors
from redraft.network.transformer import Transformer
from redraft.noise.schedules import Hybrid
from redraft.types import View

TOLERANCE = 1e-4  # of log-probabilities in float32, in units of the largest logit


@dataclass(frozen=True)
class ReferenceLogits:
    """`tokens` [B, L]; `logits` [B, L, V or more], in the positions of `tokens`; `sigma` [B]: what the network was given
    as its time; `order` [B, L]: permutations, of Eso-LM."""

    tokens: Tensor
    logits: Tensor
    sigma: Tensor | None
    order: Tensor | None


def read_reference(path: Path) -> ReferenceLogits:
    """`UserError` when the file is missing, damaged, or holds something else."""
    if not path.is_file():
        raise UserError(f"no such file: {path}{whereabouts(path)}")
    held = {name: stored.whole() for name, stored in read_safetensors(path).items()}
    if "tokens" not in held or "logits" not in held:
        raise UserError(f"{path} must hold `tokens` and `logits`: it holds {', '.join(held) or 'nothing'}")
    tokens, logits = held["tokens"].long(), held["logits"].float()
    tokens, logits = (tokens[None], logits[None]) if tokens.ndim == 1 else (tokens, logits)
    if tokens.ndim != 2 or logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        raise UserError(
            f"{path}: tokens must be [B, L] and logits [B, L, V], got {[*tokens.shape]} and {[*logits.shape]}"
        )
    sigma = held["sigma"].double().reshape(-1, 1) if "sigma" in held else None
    order = held["order"].long().expand_as(tokens) if "order" in held else None
    return ReferenceLogits(tokens, logits, sigma, order)


@torch.no_grad()
def difference(
    network: Transformer, family: Family, golden: ReferenceLogits, silent: tuple[int, ...]
) -> tuple[float, float]:
    """The largest difference of log-probabilities over the ids that both have, and the largest logit.

    Ids that are never predicted here (`silent`), and columns after our last text id, are left out on both sides.
    """
    if int(golden.tokens.max()) > family.vocab or int(golden.tokens.min()) < 0:
        raise UserError(f"the tokens to verify with must be in 0..{family.vocab}, got {int(golden.tokens.max())}")
    if golden.logits.shape[-1] < family.vocab:
        raise UserError(
            f"the logits to verify with are over {golden.logits.shape[-1]} ids, the model's over {family.vocab}"
        )
    worst = largest = 0.0
    keep = torch.tensor([i for i in range(family.vocab) if i not in silent])
    for row in range(len(golden.tokens)):
        ours, theirs = _logits(network, family, golden, row)[:, keep], golden.logits[row][:, keep]
        gap = (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max()
        worst = max(worst, float(gap) if bool(torch.isfinite(gap)) else float("inf"))
        largest = max(largest, float(theirs.abs().max()))
    return worst, largest


def _logits(network: Transformer, family: Family, golden: ReferenceLogits, row: int) -> Tensor:
    """[L, V], in the positions of the tokens."""
    tokens = golden.tokens[row : row + 1]
    sigma = None if golden.sigma is None else golden.sigma[row % len(golden.sigma)][None]
    if sigma is not None and network.shape.clock is not None:
        sigma = -Hybrid(family.vocab, network.shape.clock)(sigma)[0].log()
    if isinstance(family, EsoLM):
        clean_first = (tokens == family.mask_id).to(torch.int8).argsort(stable=True, dim=1)
        order = golden.order[row : row + 1] if golden.order is not None else clean_first
        z = tokens.gather(1, order)
        hidden = network.trunk(family.view(z, order, (z != family.mask_id).cumprod(1).sum(1)))
        return network.head(hidden)[0][order[0].argsort()]
    return network.head(network.trunk(_view(family, tokens, sigma)))[0]


def _view(family: Family, tokens: Tensor, sigma: Tensor | None) -> View:
    if isinstance(family, AR | BD3LM):
        return family.view(tokens)
    return full_view(tokens, sigma=sigma if family.clocked else None)


def parity_check(
    network: Transformer, family: Family, path: Path, silent: tuple[int, ...], tolerance: float | None
) -> float:
    """The largest difference of log-probabilities; `UserError` if it is beyond the tolerance."""
    worst, largest = difference(network, family, read_reference(path), silent)
    allowed = (TOLERANCE if tolerance is None else tolerance) * max(1.0, largest)
    if not worst <= allowed:
        raise UserError(
            f"the converted model's predictions are not those of {path}: log-probabilities differ by up to {worst:.3g}, "
            f"and {allowed:.3g} is allowed; nothing was written"
        )
    return worst
