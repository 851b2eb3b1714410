"""Eso-LM: between masked diffusion and left to right.  Sahoo et al. 2025, arXiv:2506.01928.

A share alpha_0 of the tokens is written by masked diffusion in a random order, the rest left to right. The network is
causal *in the order of generation*: clean tokens first, then masks, each at its own place in the text. So keys and
values can be cached, and alpha_0 = 0 is a left-to-right model, alpha_0 = 1 a causal-order MDLM. That is variant B; in variant
A the tokens that diffusion has written also see each other both ways, which no cache survives.

    nelbo = E_t alpha_0 / (1 - alpha_t) CE(hidden | z_t)  +  E_z0 CE(hidden, left to right | z_0),   alpha_t = alpha_0 (1 - t)

Predicts: p(x0 at l | the tokens before l in the order).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from redraft.errors import UserError, unknown
from redraft.families.base import AnyOrder, Family, carry_over, masked_cross_entropy
from redraft.families.mdlm import check_objective
from redraft.network.device import few_shapes
from redraft.network.padding import of_rows
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.noise.time_density import TimeDensity, TimeOption, Uniform
from redraft.types import Attention, Batch, Network, Noise, Pattern, TokenLoss, View

VARIANTS = ("A", "B")
Sees = Callable[[Tensor, Tensor, Tensor], Tensor]  # see types.Pattern


@dataclass(frozen=True)
class EsoLM(TimeOption, Family, AnyOrder):
    """`alpha_0` in [0, 1]: the share written by diffusion, whose phase `objective` and `time` are about, as in MDLM.
    `variant`: B, causal in the order, or A, both ways among the tokens that diffusion has written.
    """

    name: ClassVar[str] = "esolm"
    sampler: ClassVar[str] = "ordered"
    exported: ClassVar[str] = "ordered"
    vocab: int
    alpha_0: float = 1.0
    objective: str = "low_variance"
    variant: str = "B"

    def __post_init__(self) -> None:
        check_objective(self.objective)
        if self.variant not in VARIANTS:
            raise unknown("variant", self.variant, VARIANTS)
        if not 0 <= self.alpha_0 <= 1:
            raise UserError(f"family.alpha_0 must be in [0, 1], got {self.alpha_0}")

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        """With both phases, even samples take the diffusion phase and odd ones the sequential phase, each counted twice:
        the mean is the sum of the two phases' means, at the cost of one pass a sample."""
        if self.alpha_0 == 0:
            return TokenLoss(self._sequential(network, batch, key), batch.scored)
        if self.alpha_0 == 1:
            return TokenLoss(self._diffusion(network, batch, key, self.objective, self.density), batch.scored)
        even = batch.index % 2 == 0
        parts = list[tuple[Tensor, Tensor]]()
        if even.any():
            part = self._diffusion(of_rows(network, even), _rows(batch, even), key, self.objective, self.density)
            parts.append((even, part))
        if not even.all():
            parts.append((~even, self._sequential(of_rows(network, ~even), _rows(batch, ~even), key)))
        # float32 where logs are summed, or float64 of a network in float64
        nats = torch.zeros_like(batch.tokens, dtype=torch.promote_types(parts[0][1].dtype, torch.float32))
        for rows, part in parts:
            nats = nats.index_put((rows,), 2 * part.to(nats.dtype))
        return TokenLoss(nats, batch.scored)

    def nelbo(self, network: Network, batch: Batch, *, key: Key) -> TokenLoss:
        phases = []
        if self.alpha_0 > 0:
            phases.append(self._diffusion(network, batch, key, "nelbo", Uniform()))
        if self.alpha_0 < 1:
            phases.append(self._sequential(network, batch, key))
        return TokenLoss(torch.stack(phases).sum(0), batch.scored)

    def log_p(self, network: Network, tokens: Tensor, t: Tensor | None, order: Tensor | None) -> Tensor:
        """`order` [B, L] permutation: position order[b, i] is the i-th to be seen. None: clean tokens first, then masks,
        each left to right. In variant A the clean tokens that no mask precedes see each other."""
        if t is not None:
            raise UserError("family 'esolm' has no clock: leave out `t`")
        if order is None:
            order = (tokens == self.mask_id).to(torch.int8).argsort(stable=True, dim=1)
        z = tokens.gather(1, order)
        hidden = network.trunk(self.view(z, order, (z != self.mask_id).cumprod(1).sum(1)))
        logits = network.head(hidden)
        return carry_over(logits.gather(1, order.argsort(1)[..., None].expand_as(logits)).log_softmax(-1), tokens)

    def prior(self, noise: Noise) -> Tensor:
        return torch.full_like(noise("prior"), self.mask_id, dtype=torch.int64)

    def view(self, tokens: Tensor, order: Tensor, written: Tensor) -> View:
        """`tokens` [B, Q] already in `order`; each keeps its place in the text. The first `written` [B] are diffusion's."""
        if self.variant == "B":
            return View(tokens, order, Attention.CAUSAL)
        sees, length = _causal_but(written), tokens.shape[1]
        return View(tokens, order, Pattern(sees, (len(tokens), length, length)))

    def diffusion_nats(
        self, network: Network, zt: Tensor, x0: Tensor, order: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy [B, L] of the hidden tokens of `zt`, seen causally in `order`, times `weight` [B, 1]. What is [MASK]
        in `x0` too, as a prompt may be (classifier-free guidance), is no target."""
        z, x = zt.gather(1, order), x0.gather(1, order)
        hidden = network.trunk(self.view(z, order, (z != self.mask_id).sum(1)))
        nats = masked_cross_entropy(network, hidden, (z == self.mask_id) & (x != self.mask_id), x, weight)
        return torch.zeros_like(nats).scatter(1, order, nats)

    def sequential_nats(self, network: Network, z0: Tensor, x0: Tensor, order: Tensor) -> Tensor:
        """Cross-entropy [B, L] of the hidden tokens of `z0`, each given every token before it in `order`.

        Two streams, [masks; text]: the text is causal in the order; a mask sees itself and the text strictly before it.
        Clean tokens need no mask, so the rows are L + the number hidden, not 2 L.
        """
        hidden_ranks = z0.gather(1, order) == self.mask_id
        masks, rank = _mask_stream(hidden_ranks)
        place, length = order.gather(1, rank), order.shape[1]
        tokens = torch.cat([torch.full_like(rank, self.mask_id), x0.gather(1, order)], 1)
        written = length - hidden_ranks.sum(1) if self.variant == "A" else torch.zeros_like(rank[:, 0])
        pattern = _two_streams(rank, masks, _causal_but(written), length)
        hidden = network.trunk(View(tokens, torch.cat([place, order], 1), pattern))
        targets = x0.gather(1, place)
        nats = masked_cross_entropy(network, hidden[:, : rank.shape[1]], masks & (targets != self.mask_id), targets)
        return torch.zeros_like(x0, dtype=nats.dtype).scatter_add(1, place, nats)

    def chain_nats(self, network: Network, x0: Tensor, scored: Tensor, order: Tensor) -> Tensor:
        """One pass, where the network is causal in the order; in variant A a pass for each token that diffusion writes."""
        z = x0.masked_fill(scored, self.mask_id)
        if self.variant == "B" or self.alpha_0 == 0:
            return self.sequential_nats(network, z, x0, order)
        if why := self.order_refusal("generative"):
            raise UserError(f"family 'esolm' scores no order: {why}")
        paid = torch.zeros(x0.shape, device=x0.device)
        for place in order.split(1, 1):
            now = torch.zeros_like(scored).scatter(1, place, True) & scored
            # Masks that come later in the order are seen by none before them.
            paid = paid + self.diffusion_nats(network, z, x0, order).where(now, 0.0)
            z = x0.where(now, z)
        return paid

    def chain_passes(self, scored: int) -> int:
        return 1 if self.variant == "B" or self.alpha_0 == 0 else scored

    def orders(self, scored: Tensor, noise: Noise) -> Tensor:
        """Given tokens, then each other with probability alpha_0 by diffusion, both shuffled; then the rest left to right."""
        late = scored & (noise("corrupt") >= self.alpha_0)
        ramp = torch.linspace(0, 1, scored.shape[1] + 1, dtype=torch.float64, device=scored.device)[:-1]
        return (scored.long() + late.long() + torch.where(late, ramp, noise("order"))).argsort(1)

    def order_refusal(self, kind: str) -> str | None:
        if self.variant == "B" or self.alpha_0 in (0, 1):
            return None
        return "in variant A with 0 < alpha_0 < 1 an order does not tell which of its tokens diffusion wrote"

    def order(self, z: Tensor, noise: Noise, sequential: bool) -> Tensor:
        """Clean tokens first, shuffled; then masks, shuffled (diffusion) or left to right (sequential)."""
        shuffle, ramp = noise("order"), torch.linspace(0, 1, z.shape[1] + 1, dtype=torch.float64, device=z.device)[:-1]
        hidden = z == self.mask_id
        return (hidden + torch.where(hidden & sequential, ramp, shuffle)).argsort(1)

    def _diffusion(self, network: Network, batch: Batch, key: Key, objective: str, density: TimeDensity) -> Tensor:
        noise = counter_rng.field(key, batch.index, batch.tokens.shape[1])
        u = counter_rng.times(key.fold_in("time"), batch.index)[:, None]
        alpha = self.alpha_0 * (1 - density.times(u))
        zt = self._hide(batch, noise("corrupt") >= alpha)
        weight = None if objective == "low_variance" else self.alpha_0 / (1 - alpha)
        if weight is not None and (rarity := density.weight(u)) is not None:
            weight = weight * rarity
        return self.diffusion_nats(network, zt, batch.tokens, self.order(zt, noise, sequential=False), weight)

    def _sequential(self, network: Network, batch: Batch, key: Key) -> Tensor:
        noise = counter_rng.field(key.fold_in("sequential"), batch.index, batch.tokens.shape[1])
        z0 = self._hide(batch, noise("corrupt") >= self.alpha_0)
        return self.sequential_nats(network, z0, batch.tokens, self.order(z0, noise, sequential=True))

    def _hide(self, batch: Batch, where: Tensor) -> Tensor:
        return batch.tokens.masked_fill(where & batch.scored, self.mask_id)


def _rows(batch: Batch, which: Tensor) -> Batch:
    lengths = None if batch.lengths is None else batch.lengths[which]
    return Batch(batch.tokens[which], batch.scored[which], batch.index[which], lengths)


def _mask_stream(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks [B, M] of the hidden tokens of each row, padded to the row with most (`few_shapes`); which of them are real."""
    count = hidden.sum(1, keepdim=True)
    most = few_shapes(max(1, int(count.max())), hidden.shape[1], hidden.device)
    rank = (~hidden).to(torch.int8).argsort(stable=True, dim=1)[:, :most]
    return torch.arange(most, device=hidden.device) < count, rank


def _causal_but(written: Tensor) -> Sees:
    """Each sees those up to itself; the first `written` [B] see one another."""
    return lambda b, q, k: (k <= q) | ((k < written[b]) & (q < written[b]))


def _two_streams(rank: Tensor, real: Tensor, text: Sees, length: int) -> Pattern:
    """[B, M + L, M + L]: mask i sees itself and text before its rank; text sees text by the rule `text`, and no mask."""
    rows, masks = rank.shape
    before = rank.masked_fill(~real, 0)

    def sees(b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        place, mask = k - masks, q < masks
        earlier = place < before[b, q.clamp(max=masks - 1)]
        return (mask & (q == k)) | ((place >= 0) & torch.where(mask, earlier, text(b, q - masks, place)))

    return Pattern(sees, (rows, masks + length, masks + length))
