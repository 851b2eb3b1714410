"""D3PM with an absorbing state: masked diffusion in T steps.  Austin et al. 2021, arXiv:2107.03006, eqs. 1, 5, appendix A.

The process of MDLM at the times 1/T, ..., 1 (alpha = 1 - t is the paper's beta_t = 1 / (T - t + 1)); the network sees the
time too. The KL of a reverse step is, for a masked token, the probability that it is unmasked times its cross-entropy:

    L_vb = sum_t KL_t,   KL_t = (alpha_s - alpha_t) / (1 - alpha_t) (-log p(x0 | x_t)) if hidden;   loss KL_t + lambda CE

Predicts: p(x0 at l | visible tokens); [MASK] is never predicted and visible tokens are carried over, as in MDLM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import Absorbing, check_absorbing, check_grid, masked_cross_entropy
from redraft.noise.counter_rng import Key
from redraft.noise.schedules import Linear, Schedule
from redraft.types import Batch, Network, TokenLoss


@dataclass(frozen=True)
class D3PM(Absorbing):
    """`grid` = T. `auxiliary` = lambda weighs the cross-entropy against the KL of one step (their code for text: 0.01), so
    the loss, in the scale of the whole bound, is T (KL_t + lambda CE). The bound that is reported is that of T steps.
    """

    name: ClassVar[str] = "d3pm"
    sampler: ClassVar[str] = "ancestral"
    exported: ClassVar[str] = "absorbing"
    clocked: ClassVar[bool] = True
    vocab: int
    grid: int = 1000
    auxiliary: float = 0.01
    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        check_grid(self.grid)
        check_absorbing(self.schedule)
        if self.grid == 0:
            raise UserError("family.grid must be at least 1 for d3pm, got 0: in continuous time it is mdlm")
        if self.auxiliary < 0:
            raise UserError(f"family.auxiliary must be at least 0, got {self.auxiliary}")

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        return self.per_token_loss(self.token_loss, network, batch, key, self.training_times)

    def token_nelbo(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        return masked_cross_entropy(network, hidden, xt == self.mask_id, x0, self.weight(t))

    def token_loss(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        weight = self.weight(t) + self.grid * self.auxiliary
        return masked_cross_entropy(network, hidden, xt == self.mask_id, x0, weight)
