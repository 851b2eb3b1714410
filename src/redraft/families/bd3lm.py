"""BD3-LM: block diffusion.  Arriola et al. 2025, arXiv:2503.09573, section 3.

Blocks of B' tokens are written from left to right, each by masked diffusion given the clean blocks before it. The network
looks both ways inside a block and back at earlier ones, never ahead, so keys and values of finished blocks can be cached.
B' = 1 writes left to right, with masks as queries; B' = L is MDLM.

    -log p(x) <= sum_b E_t 1/t sum_{l in b hidden} -log p(x_l | visible in b, blocks before b)          alpha_t = 1 - t

The bound depends on t only through how many tokens of a block are masked. With ceil(t n) of its n tokens masked, chosen
uniformly, and weight n / ceil(t n), the expectation is the same (arXiv:2502.09992, eq. 6), with no variance if all tokens cost
the same. So at B' = 1 every token is masked and its loss is its exact -log p; the paper fixes t = 1 for that.
Predicts: p(x0 at l | visible tokens of its block, the blocks before it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import AnyOrder, Family, carry_over, masked_cross_entropy, no_order
from redraft.families.mdlm import check_objective
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.noise.time_density import TimeOption
from redraft.types import Batch, Network, Noise, Pattern, TokenLoss, View


@dataclass(frozen=True)
class BD3LM(TimeOption, Family, AnyOrder):
    """`block` B': tokens a block; the last one of a text may be short. Trains on the bound ("nelbo"), or on the plain
    cross-entropy of hidden tokens ("low_variance"), at masking rates drawn from (`clip_low`, `clip_high`]: the paper's
    clipped schedules, which leave out the rates with the noisiest gradients (section 5). The bound takes all rates. `time`
    draws a place in that interval.
    """

    name: ClassVar[str] = "bd3lm"
    sampler: ClassVar[str] = "bd3lm"
    exported: ClassVar[str] = "blocks"
    vocab: int
    block: int = 4
    objective: str = "nelbo"
    clip_low: float = 0.0
    clip_high: float = 1.0

    def __post_init__(self) -> None:
        check_objective(self.objective)
        if self.block < 1:
            raise UserError(f"family.block must be at least 1 token, got {self.block}")
        if not 0 <= self.clip_low <= self.clip_high <= 1 or self.clip_high == 0:
            raise UserError(
                f"family.clip_low and family.clip_high must be 0 <= low <= high <= 1 with high above 0: "
                f"got {self.clip_low} and {self.clip_high}"
            )

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        u = self.times(batch, key)
        rate, rarity = self.clip_low + (self.clip_high - self.clip_low) * self.density.times(u), self.density.weight(u)
        hide, weight = self.hidden(batch, rate, key)
        if rarity is not None:
            weight = weight * rarity.repeat_interleave(self.block, 1)[:, : weight.shape[1]]
        nats = self.hidden_nats(network, batch.tokens, hide, weight if self.objective == "nelbo" else None)
        return TokenLoss(nats, batch.scored)

    def nelbo(self, network: Network, batch: Batch, *, key: Key) -> TokenLoss:
        hide, weight = self.hidden(batch, self.times(batch, key), key)
        return TokenLoss(self.hidden_nats(network, batch.tokens, hide, weight), batch.scored)

    def log_p(self, network: Network, tokens: Tensor, t: Tensor | None, order: Tensor | None) -> Tensor:
        """Every block given itself and those before it, as they stand in `tokens`."""
        no_order(self.name, order)
        if t is not None:
            raise UserError("family 'bd3lm' has no clock: leave out `t`")
        hidden = network.trunk(self.view(tokens))
        return carry_over(network.head(hidden).log_softmax(-1), tokens)

    def prior(self, noise: Noise) -> Tensor:
        return torch.full_like(noise("prior"), self.mask_id, dtype=torch.int64)

    def view(self, tokens: Tensor) -> View:
        """One stream: attention inside each block and back."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return View(tokens, place[None], one_stream(tokens.shape[1], self.block))

    def two_streams(self, z: Tensor, x0: Tensor) -> View:
        """[z; x0] of 2 L tokens: a block of z sees itself and the clean blocks before it, x0 as in `view` sees no z."""
        place = torch.arange(x0.shape[1], device=x0.device)
        return View(torch.cat([z, x0], 1), place.repeat(2)[None], two_streams(x0.shape[1], self.block))

    def hidden_nats(self, network: Network, x0: Tensor, hide: Tensor, weight: Tensor | None = None) -> Tensor:
        """Cross-entropy [B, L] of the tokens that `hide` [B, L] covers, each given the others of its block and the clean
        blocks before it: all blocks in one pass. Times `weight`."""
        z = x0.masked_fill(hide, self.mask_id)
        hidden = network.trunk(self.two_streams(z, x0))[:, : x0.shape[1]]
        return masked_cross_entropy(network, hidden, hide, x0, weight)

    def chain_nats(self, network: Network, x0: Tensor, scored: Tensor, order: Tensor) -> Tensor:
        """As many passes as the largest number of scored tokens in a block. `UserError` for an order that is not blockwise."""
        block = (order // self.block).where(scored.gather(1, order), 0)
        if (block.diff(dim=1) < 0).any():
            raise UserError("family 'bd3lm' writes block after block: it can score no order that goes back to a block")
        rank = rank_in_block(order.argsort(1).double(), scored, self.block)
        paid = torch.zeros(x0.shape, device=x0.device)
        for now in range(int(rank.masked_fill(~scored, -1).max()) + 1):
            hide = scored & (rank >= now)
            nats = self.hidden_nats(network, x0, hide)
            paid = paid + nats.where(rank == now, 0.0)
        return paid

    def chain_passes(self, scored: int) -> int:
        return min(scored, self.block)

    def orders(self, scored: Tensor, noise: Noise) -> Tensor:
        """Block after block, each in a uniformly random order."""
        block = torch.arange(scored.shape[1], device=scored.device) // self.block
        return (scored * (1 + block) + noise("order")).argsort(1)

    def order_refusal(self, kind: str) -> str | None:
        why = "it does not write in uniformly random orders, but left_to_right and generative ones can be scored"
        return why if kind == "random" else None

    def times(self, batch: Batch, key: Key) -> Tensor:
        """Times in (0, 1], float64 [B, N] for N blocks: each uniform, and evenly spread over consecutive samples for each
        block, over the blocks of each sample, and over both: a Kronecker sequence of two irrationals."""
        t = counter_rng.times(key.fold_in("time"), batch.index)[:, None]
        number = torch.arange(-(-batch.tokens.shape[1] // self.block), dtype=torch.float64, device=t.device)
        return 1 - (t + number * math.sqrt(2)) % 1.0

    def hidden(self, batch: Batch, rate: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        """Which tokens are hidden, [B, L], at masking rates [B, N] rounded up to whole tokens; and the bound's weights of
        a nat there, 1 / rate, float64 [B, L]."""
        length = batch.tokens.shape[1]
        noise = counter_rng.field(key, batch.index, length)
        tokens = by_block(batch.scored, self.block, False).sum(-1)
        count = (rate * tokens).ceil()
        weight = tokens / count.clamp(min=1)
        count, weight = (part.repeat_interleave(self.block, 1)[:, :length] for part in (count, weight))
        return batch.scored & (rank_in_block(noise("corrupt"), batch.scored, self.block) < count), weight


def by_block(x: Tensor, block: int, fill: float) -> Tensor:
    """[B, L] -> [B, N, block], a short last block filled up."""
    block = min(block, x.shape[1])
    missing = -x.shape[1] % block
    return torch.nn.functional.pad(x, (0, missing), value=fill).unflatten(1, (-1, block))


def rank_in_block(values: Tensor, among: Tensor, block: int) -> Tensor:
    """[B, L]: the rank of each value among those of its block that are in `among`, the others after them."""
    split = by_block(values.masked_fill(~among, torch.inf), block, torch.inf)
    return split.argsort(-1).argsort(-1).flatten(1)[:, : values.shape[1]]


@lru_cache(maxsize=64)
def one_stream(length: int, block: int) -> Pattern:
    """[1, L, L]: each block sees itself and those before it."""
    return Pattern(lambda b, q, k: q // block >= k // block, (1, length, length), kept=True)


@lru_cache(maxsize=64)
def two_streams(length: int, block: int) -> Pattern:
    """[1, 2 L, 2 L], noisy text and then clean text: a noisy block sees itself and the clean blocks before it, a clean one
    itself and the clean ones before it."""

    def sees(b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        query, key = q % length // block, k % length // block
        noisy = (k < length) & (q < length) & (query == key)
        return noisy | ((k >= length) & (key < query + (q >= length)))

    return Pattern(sees, (1, 2 * length, 2 * length), kept=True)
