"""Estimators of -log p(x): samples in nats for each text, whose mean and standard error are reported.

  continuous_time       the family's own bound, a random time a draw; for ar the exact value
  discrete_time         the same of a family whose bound is that of T steps (d3pm; mdlm with a grid): a random step a draw
  mask_count            MDLM's bound with a random *number* of hidden tokens (LLaDA, arXiv:2502.09992, eq. 6)
  chain_rule            exact, for one order of generation: -log p(x | order); or for a rule that chooses the next positions
                        (DUEL, unmasking.py): then exactly -log p(x) of what generates by that rule
  importance_weighted   -log 1/k sum_k p(x | order_k): from the bound at k = 1 to the exact value as k grows
                        (Burda et al. 2016, arXiv:1509.00519; over orders as in the Eso-LM code, `eval.num_iw_orders`)
  path_weighted         -log 1/k sum_k p(path_k, x) / q(path_k | x), for every family with a clock, in `steps` steps

All randomness is counters of (key, sample number, position): the same for every model, candidate, batch size and machine.
Sample w R + r is draw r of R of text w, and its k orders or paths are samples (w R + r) k ... of the estimator with k = 1.
So larger k on the same seed regroups the same draws, and by Jensen the estimate can only fall.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.errors import UserError, unknown
from redraft.evaluation.likelihood.unmasking import POLICIES, policy_nats
from redraft.families.ar import AR
from redraft.families.base import AnyOrder, DiffusionFamily, Family
from redraft.families.esolm import EsoLM
from redraft.families.mdlm import MDLM
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.registry import CHAIN_ORDERS
from redraft.sampling.base import mask_refusal
from redraft.types import Batch, Network, Noise


@dataclass(frozen=True)
class Estimator(ABC):
    """Settings of one estimator. A draw pays for the scored tokens of a row, given the others."""

    name: ClassVar[str]

    def record(self) -> dict[str, Any]:
        """Its name and settings, without those that are None."""
        return {"name": self.name, **{key: value for key, value in asdict(self).items() if value is not None}}

    @abstractmethod
    def refusal(self, family: Family) -> str | None:
        """Why this estimator cannot score that family, in a few words; None when it can."""

    def random(self, family: Family) -> bool:
        """Whether draws differ. If not, one is the exact value."""
        return True

    def passes(self, family: Family, scored: int) -> int:
        """Times that a draw reads a row of so many scored tokens."""
        return 1

    def headed(self, family: Family, scored: int) -> int:
        """Times that a draw predicts all its scored tokens, which may be one by one."""
        return self.passes(family, scored)

    @abstractmethod
    def nats(self, network: Network, family: Family, batch: Batch, *, draws: int, key: Key) -> Tensor:
        """One draw for each row, float64 [B]. `batch.index` w R + r says which of the R = `draws` of text w it is."""


@dataclass(frozen=True)
class ContinuousTime(Estimator):
    """The family's `nelbo`, where time is continuous or there is none."""

    name: ClassVar[str] = "continuous_time"

    def refusal(self, family: Family) -> str | None:
        grid = _grid(family)
        return f"its bound is that of a chain of {grid} steps" if grid else None

    def random(self, family: Family) -> bool:
        return not family.exact

    def passes(self, family: Family, scored: int) -> int:
        return 2 if isinstance(family, EsoLM) and 0 < family.alpha_0 < 1 else 1  # both its phases

    def nats(self, network: Network, family: Family, batch: Batch, *, draws: int, key: Key) -> Tensor:
        return family.nelbo(network, batch, key=key).nats.double().sum(1)


@dataclass(frozen=True)
class DiscreteTime(ContinuousTime):
    """The family's `nelbo`, where its times are those of a grid."""

    name: ClassVar[str] = "discrete_time"

    def refusal(self, family: Family) -> str | None:
        return None if _grid(family) else "its bound is not that of a chain of steps"


def own_bound(family: Family) -> Estimator:
    """The estimator that is the family's `nelbo`."""
    return DiscreteTime() if _grid(family) else ContinuousTime()


def _grid(family: Family) -> int:
    return family.grid if isinstance(family, DiffusionFamily) else 0


@dataclass(frozen=True)
class MaskCount(Estimator):
    """n/l times the cross-entropy of l hidden tokens out of n, l uniform on 1..n: the bound of every schedule.

    Weighing by 1/l and not by 1/t leaves no variance when all tokens cost the same.
    """

    name: ClassVar[str] = "mask_count"

    def refusal(self, family: Family) -> str | None:
        return None if isinstance(family, MDLM) else "it hides no set of tokens that could be counted instead of timed"

    def nats(self, network: Network, family: Family, batch: Batch, *, draws: int, key: Key) -> Tensor:
        assert isinstance(family, MDLM)
        offset = 1 - counter_rng.times(key.fold_in("count"), batch.index // draws)
        n = batch.scored.sum(1)
        count = stratified_count(offset, batch.index % draws, draws, n)
        u = counter_rng.field(key, batch.index, batch.tokens.shape[1])("corrupt").masked_fill(~batch.scored, torch.inf)
        hide = u.argsort(1).argsort(1) < count.minimum(n)[:, None]
        return family.hidden_nats(network, batch.tokens, hide).double().sum(1) * n / count


@dataclass(frozen=True)
class ChainRule(Estimator):
    """-log p(x | order), token by token. `order`: left_to_right, random (uniform) or generative (as the family writes); or
    confidence, margin or entropy, by which a masked family chooses what it writes next. `k` positions a step, of these and
    left_to_right, each given what earlier steps wrote; None: one."""

    name: ClassVar[str] = "chain_rule"
    order: str = "left_to_right"
    k: int | None = None

    def __post_init__(self) -> None:
        if self.order not in CHAIN_ORDERS:
            raise unknown("order", self.order, CHAIN_ORDERS)
        if self.k is not None:
            _at_least_one("k", self.k)
            if self.order not in POLICIES:
                raise UserError(f"k is for the orders {', '.join(POLICIES)}: {self.order} writes one token a step")

    @property
    def by_policy(self) -> bool:
        """Whether positions are chosen step by step, or several a step."""
        return self.order not in ("left_to_right", "random", "generative") or (self.k or 1) > 1

    def refusal(self, family: Family) -> str | None:
        if isinstance(family, AR) and self.order != "left_to_right":
            return f"it writes in one order: left_to_right, not {self.order}"
        if self.by_policy:
            why = mask_refusal(family)
            return why and f"{why}, so it cannot choose what it writes next"
        if isinstance(family, AnyOrder):
            return family.order_refusal(self.order)
        return None if isinstance(family, AR) else "it writes no token after another"

    def random(self, family: Family) -> bool:
        return self.order in ("random", "generative")

    def passes(self, family: Family, scored: int) -> int:
        if self.by_policy:
            return -(-scored // (self.k or 1))
        return family.chain_passes(scored) if isinstance(family, AnyOrder) else 1

    def headed(self, family: Family, scored: int) -> int:
        """A rule that chooses looks at all that is hidden, on average half of it, and then at what it chose."""
        return 1 if self.order in ("left_to_right", "random", "generative") else self.passes(family, scored) // 2 + 2

    def nats(self, network: Network, family: Family, batch: Batch, *, draws: int, key: Key) -> Tensor:
        if isinstance(family, AR):
            return family.nelbo(network, batch, key=key).nats.double().sum(1)
        if self.by_policy:
            assert isinstance(family, DiffusionFamily)
            return policy_nats(network, family, batch, self.order, self.k or 1)
        assert isinstance(family, AnyOrder)
        length, scored = batch.tokens.shape[1], batch.scored
        noise = counter_rng.field(key.fold_in("order"), batch.index, length)
        if self.order == "generative":
            return chain_nats(network, family, batch, family.orders(scored, noise))
        ramp = torch.arange(length, device=scored.device) / length
        rank = ramp if self.order == "left_to_right" else noise("order")
        return chain_nats(network, family, batch, (scored + rank).argsort(1))


@dataclass(frozen=True)
class ImportanceWeighted(Estimator):
    """A mean of p(x | order) over `k` orders drawn as the family generates.

    That law is what makes it a bound: the model's p(x) is E p(x | order) over it, in the limit of one token a call. MDLM
    writes in a uniformly random order. Eso-LM writes each token by diffusion with probability alpha_0, those in a
    uniformly random order, then the rest left to right. Uniform orders for both would bound another model.
    """

    name: ClassVar[str] = "importance_weighted"
    k: int = 16

    def __post_init__(self) -> None:
        _at_least_one("k", self.k)

    def refusal(self, family: Family) -> str | None:
        if isinstance(family, AnyOrder):
            return family.order_refusal("generative")
        return "it has no orders of generation to average over"

    def random(self, family: Family) -> bool:
        return not (isinstance(family, EsoLM) and family.alpha_0 == 0)

    def passes(self, family: Family, scored: int) -> int:
        return self.k * ChainRule("generative").passes(family, scored)

    def headed(self, family: Family, scored: int) -> int:
        return self.k

    def nats(self, network: Network, family: Family, batch: Batch, *, draws: int, key: Key) -> Tensor:
        one = ChainRule("generative")
        parts = [one.nats(network, family, _sample(batch, self.k, i), draws=draws, key=key) for i in range(self.k)]
        return regrouped(torch.stack(parts, 1), self.k)[:, 0]


@dataclass(frozen=True)
class PathWeighted(Estimator):
    """A mean of p(path, x) / q(path | x) over `k` noise paths: a bound on what `ancestral` writes in T = `steps` steps.

    The T-step chain is a model of its own: its -log p(x) may be above the continuous-time bound.
    """

    name: ClassVar[str] = "path_weighted"
    k: int = 16
    steps: int = 64

    def __post_init__(self) -> None:
        _at_least_one("k", self.k)
        _at_least_one("steps", self.steps)

    def refusal(self, family: Family) -> str | None:
        return None if isinstance(family, DiffusionFamily) else "it has no clock, so no paths"

    def passes(self, family: Family, scored: int) -> int:
        return self.k * self.steps

    def nats(self, network: Network, family: Family, batch: Batch, *, draws: int, key: Key) -> Tensor:
        key = key.fold_in("path", self.steps)
        parts = [self._one(network, family, _sample(batch, self.k, i), key) for i in range(self.k)]
        return regrouped(torch.stack(parts, 1), self.k)[:, 0]

    def _one(self, network: Network, family: Family, batch: Batch, key: Key) -> Tensor:
        """-log p(path, x) / q(path | x) of one path a row. Unscored tokens are never corrupted."""
        assert isinstance(family, DiffusionFamily)
        x0, length = batch.tokens, batch.tokens.shape[1]
        grid = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64, device=x0.device)[:, None, None]
        xt, total = _move(*path_start(family, x0), batch, counter_rng.field(key, batch.index, length))
        for number, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
            t, s = t.expand(len(x0), 1), s.expand(len(x0), 1)
            noise = counter_rng.field(key.fold_in("step", number), batch.index, length)
            xt, nats = _move(*path_step(network, family, x0, xt, t, s), batch, noise)
            total = total + nats
        return total


ESTIMATORS: dict[str, type[Estimator]] = {
    kind.name: kind for kind in (ContinuousTime, DiscreteTime, MaskCount, ChainRule, ImportanceWeighted, PathWeighted)
}


def build(name: str, options: dict[str, Any], family: Family) -> Estimator:
    """The estimator of that name, refused with what would work if it does not fit the family."""
    if name not in ESTIMATORS:
        raise unknown("estimator", name, ESTIMATORS)
    known = [field.name for field in fields(ESTIMATORS[name])]
    for key in options:
        if key not in known:
            raise UserError(f"estimator {name!r} takes no {key}: it takes {' and '.join(known) or 'no settings'}")
    estimator = ESTIMATORS[name](**options)
    if why := estimator.refusal(family):
        fitting = [n for n, kind in ESTIMATORS.items() if kind().refusal(family) is None]
        raise UserError(f"estimator {name!r} cannot score family {family.name!r}: {why}. Try: {', '.join(fitting)}.")
    return estimator


def chain_nats(network: Network, family: AnyOrder, batch: Batch, order: Tensor) -> Tensor:
    """-log p(x | order) of the scored tokens, float64 [B]. `order` [B, L] permutations, unscored positions first."""
    return family.chain_nats(network, batch.tokens, batch.scored, order).double().sum(1)


def path_start(family: DiffusionFamily, x0: Tensor) -> tuple[Tensor, Tensor]:
    """q(x_1 | x_0) and the prior, float64 [B, L, K] over the K states."""
    at = torch.ones(len(x0), 1, dtype=torch.float64, device=x0.device)
    q, alpha = family.marginal(x0, at), family.schedule(at)[0][..., None]
    # Corruption is towards one law (noise/kernels.py), q = alpha x_0 + (1 - alpha) prior.
    return q, (q - alpha * F.one_hot(x0, q.shape[-1])) / (1 - alpha)


def path_step(
    network: Network, family: DiffusionFamily, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """q(x_s | x_t, x_0) and the model's p(x_s | x_t), by definition: float64 [B, L, K]; t, s [B, 1]."""
    predicted = family.log_p(network, xt, t, None).double().exp()
    return family.posterior(F.one_hot(x0, family.vocab).double(), xt, t, s), family.posterior(predicted, xt, t, s)


def _move(q: Tensor, p: Tensor, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
    """A draw from q [B, L, K] where scored, and its log q / p [B]."""
    state = counter_rng.categorical(q.flatten(0, 1).log(), noise("state").flatten()).view_as(batch.tokens)
    new = state.where(batch.scored, batch.tokens)
    ratio = q.gather(-1, new[..., None]).log() - p.gather(-1, new[..., None]).log()
    return new, ratio[..., 0].where(batch.scored, 0.0).sum(1)


def stratified_count(offset: Tensor, draw: Tensor, draws: int, n: Tensor) -> Tensor:
    """Number `draw` of `draws` counts in 1..n, each exactly uniform when `offset` is uniform on [0, 1), and evenly spread.

    floor, not round: rounding half to even is not uniform. [B] each -> int64 [B].
    """
    return (((offset + draw.double() / draws) % 1.0) * n).long() + 1


def regrouped(nats: Tensor, k: int) -> Tensor:
    """Draws [N, R] of an estimator with k = 1 -> [N, R / k] of the same with `k`: -log mean exp(-nats) of neighbours."""
    return math.log(k) - (-nats.unflatten(1, (-1, k))).logsumexp(-1)


def _sample(batch: Batch, k: int, i: int) -> Batch:
    return replace(batch, index=batch.index * k + i)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name} must be at least 1, got {value}")
