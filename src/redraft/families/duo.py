"""Duo: uniform-state diffusion.  Sahoo et al. 2025, arXiv:2506.10892; loss in closed form as in arXiv:2602.15014.

A token survives to time t with probability alpha(t), else it is redrawn uniformly from the V text ids (it may be redrawn
as itself). The network sees the corrupted text, both ways, and the clock sigma = -log alpha.
Predicts: p(x0 at l | x_t without position l), the leave-one-out posterior: the token at l is weighed in by the posterior
step, not by the network.

Training descends the bound; or begins with a curriculum, the bound along the Gaussian bridge (noise/gaussian_map.py) with the
network shown softmax(w / tau) in the place of z = argmax w; or distils a trained model for few steps (duo_distill.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from redraft.errors import UserError, unknown
from redraft.families.base import DiffusionFamily, check_shift, clock, full_view, in_place, picked, scored_places
from redraft.families.duo_distill import DIRECTIONS, consistency
from redraft.families.softmax_mixture import LogMixture, three_ways
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.noise.gaussian_map import FIRST, LAST, GaussianMap, gamma_at, gaussians, race, tempered
from redraft.noise.kernels import marginal, posterior
from redraft.noise.schedules import LogLinear, Schedule
from redraft.types import Batch, Network, Noise, Predict, SoftEmbedding, TokenLoss, View

OBJECTIVES = ("nelbo", "curriculum", "distillation")


@dataclass(frozen=True)
class Duo(DiffusionFamily):
    """K = V states, every one a text id. `objective`: nelbo, curriculum or distillation.

    Curriculum: gamma runs from `gamma_low` to `gamma_high`, by default over the paper's range of alpha. `degree`: of the
    polynomial approximating alpha(t), 0: the exact integral. The curriculum ends at the share `curriculum_end` of training,
    at a temperature from `tau` to `tau_end` (a power law in between), with the `top_k` largest weights beside the token's
    own, or all V for 0.
    `shift`: the network predicts a token from the place before it, as one that was autoregressive; the first from its own.
    Distillation: `rounds` rounds with a teacher each; round r has the time step 2^r / `stride`. `kl`: backward or forward.
    """

    name: ClassVar[str] = "duo"
    sampler: ClassVar[str] = "ancestral"
    exported: ClassVar[str] = "uniform"
    spare: ClassVar[str] = ""
    clocked: ClassVar[bool] = True
    vocab: int
    schedule: Schedule = field(default_factory=LogLinear)
    objective: str = "nelbo"
    gamma_low: float | None = None
    gamma_high: float | None = None
    degree: int = 0
    curriculum_end: float = 0.5
    tau: float = 1e-3
    tau_end: float = 1e-3
    top_k: int = 3
    rounds: int = 5
    stride: int = 512
    kl: str = "backward"
    shift: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES)
        check_shift(self.shift)
        if self.kl not in DIRECTIONS:
            raise unknown("kl", self.kl, DIRECTIONS)
        for name, good, want in (
            ("curriculum_end", 0 <= self.curriculum_end <= 1, "in [0, 1]"),
            ("tau", self.tau > 0, "above 0"),
            ("tau_end", self.tau_end > 0, "above 0"),
            ("top_k", self.top_k >= 0, "at least 1, or 0 for all"),
            ("degree", 0 <= self.degree <= 40, "in 0..40"),
            ("rounds", self.rounds >= 1, "at least 1"),
            ("stride", self.stride >= 2 ** (self.rounds - 1), f"at least {2 ** (self.rounds - 1)}, 2^(rounds - 1)"),
        ):
            if not good:
                raise UserError(f"family.{name} must be {want}: got {getattr(self, name)}")
        if self.objective == "distillation" and self.time != "uniform":
            raise UserError(f"family.time must be uniform in distillation, whose times are pairs: got {self.time}")
        if self.objective != "nelbo" and self.bridge.low >= self.bridge.high:
            raise UserError(f"family.gamma_low {self.bridge.low} must be below gamma_high {self.bridge.high}")

    @property
    def bridge(self) -> GaussianMap:
        """The curriculum's schedule."""
        low = gamma_at(FIRST, self.vocab) if self.gamma_low is None else self.gamma_low
        high = gamma_at(LAST, self.vocab) if self.gamma_high is None else self.gamma_high
        return GaussianMap(self.vocab, low, high, self.degree)

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        if self.objective == "curriculum" and progress < self.curriculum_end:
            return self.tempered_nelbo(network, batch, key=key, share=progress / self.curriculum_end)
        if self.objective == "distillation":
            stride = 2 ** min(int(progress * self.rounds + 1e-9), self.rounds - 1) / self.stride
            return consistency(self.bridge, self.noisy_view, network, batch, key=key, stride=stride, kl=self.kl)
        return self.per_token_loss(self.token_nelbo, network, batch, key, self.training_times)

    def tempered_nelbo(self, network: Network, batch: Batch, *, key: Key, share: float) -> TokenLoss:
        """The bound's integrand along the bridge, the network shown softmax(w / tau); `share` of the curriculum is done."""
        u = counter_rng.times(key.fold_in("time"), batch.index)[:, None]
        t, weight = self.density.times(u), self.density.weight(u)
        alpha, dalpha = self.bridge(t)
        dalpha = dalpha if weight is None else dalpha * weight  # the integrand is linear in it
        z, soft = self._tempered(batch, self.bridge.gamma(t), self.tau * (self.tau_end / self.tau) ** share, key)
        hidden = network.trunk(replace(self.noisy_view(z, alpha), soft=soft))
        places = scored_places(batch)
        nats = self._charge(network, *picked(batch, places, hidden, z, batch.tokens, alpha, dalpha))
        return TokenLoss(in_place(nats, batch, places), batch.scored)

    def noisy_view(self, tokens: Tensor, alpha: Tensor) -> View:
        """What the network sees of `tokens` [B, L] of which a share `alpha` [B, 1] survived."""
        return full_view(tokens, sigma=clock(alpha), shifted=self.shift)

    def marginal(self, x0: Tensor, t: Tensor) -> Tensor:
        clean = torch.nn.functional.one_hot(x0, self.vocab).to(t.dtype)
        return marginal(clean, self.schedule(t)[0].expand_as(x0), self._uniform(clean))

    def posterior(self, p0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        alpha_t, alpha_s = (self.schedule(u)[0].expand_as(xt) for u in (t, s))
        return posterior(p0, xt, alpha_t, alpha_s, self._uniform(p0))

    def corrupt(self, x0: Tensor, t: Tensor, noise: Noise) -> Tensor:
        anything = (noise("replacement") * self.vocab).long()
        return anything.where(noise("corrupt") >= self.schedule(t)[0], x0)

    def step(self, predict: Predict, xt: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
        """The posterior as a three-way mixture: stay, draw from p0, or draw uniformly (all weights times V)."""
        alpha_t, alpha_s = (self.schedule(u)[0] for u in (t, s))
        new = (noise("replacement") * self.vocab).long()
        return three_ways(predict, xt, noise, new, 1 - alpha_t, 1 - alpha_t / alpha_s, self.vocab * alpha_t, alpha_s)

    def view(self, tokens: Tensor, t: Tensor) -> View:
        return self.noisy_view(tokens, self.schedule(t)[0])

    def token_nelbo(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        return self._charge(network, hidden, xt, x0, *self.schedule(t))

    def prior_nats(self) -> float:
        """KL of alpha x0 + (1 - alpha)/K from uniform, at t = 1."""
        k, alpha = self.vocab, self.schedule(torch.ones((), dtype=torch.float64))[0].item()
        kept, other = alpha + (1 - alpha) / k, (1 - alpha) / k
        return kept * math.log(kept * k) + (k - 1) * other * math.log(other * k)

    def sample_noise(self, t: Tensor, noise: Noise) -> Tensor:
        return (noise("prior") * self.vocab).long()

    def _charge(self, network: Network, hidden: Tensor, z: Tensor, x0: Tensor, alpha: Tensor, dalpha: Tensor) -> Tensor:
        others = (part.expand(z.shape).flatten() for part in (z, x0, alpha, dalpha))
        return network.by_rule(uniform_nats, hidden.flatten(0, 1), *others).view(z.shape)

    def _tempered(self, batch: Batch, gamma: Tensor, tau: float, key: Key) -> tuple[Tensor, SoftEmbedding]:
        """z [B, L], and what the network is shown of it; tokens that are not scored stay as they are."""
        x0, length = batch.tokens, batch.tokens.shape[1]
        if self.top_k:
            run = race(
                x0,
                self.vocab,
                min(self.top_k, self.vocab - 1),
                counter_rng.field(key.fold_in("race"), batch.index, length),
            )
            z, (weights, ids) = run.argmax(x0, gamma), run.softmax(x0, gamma, tau, self.vocab)
            own = torch.zeros_like(weights)
            own[..., 0] = 1
            return z.where(batch.scored, x0), SoftEmbedding(weights.where(batch.scored[..., None], own), ids)
        if (x0 >= self.vocab).any():
            raise UserError(
                "family.top_k 0 weighs text ids alone, so it can show no blank prompt: use 3, or data.cfg_dropout 0"
            )
        z, weights = tempered(x0, gamma, gaussians(key.fold_in("gaussian"), batch.index, length, self.vocab), tau)
        own = torch.nn.functional.one_hot(x0, self.vocab).to(weights.dtype)
        return z.where(batch.scored, x0), SoftEmbedding(weights.where(batch.scored[..., None], own), None)

    def _uniform(self, like: Tensor) -> Tensor:
        return like.new_full((self.vocab,), 1 / self.vocab)


def uniform_nats(logits: Tensor, z: Tensor, x: Tensor, alpha: Tensor, dalpha: Tensor) -> Tensor:
    """The bound's integrand with the jump target summed out; one reduction over V and two gathers.

    With b_j = K alpha p_j + 1 - alpha, S = sum_j log b_j, kappa = (1 - alpha) / (K alpha + 1 - alpha), it is
    alpha' / (K alpha) [ K / xb_z - K / b_z - D ], xb_z = K alpha [z = x] + 1 - alpha, and

        z = x:   D = kappa (K log b_z - S) + (K - 1) kappa log kappa
        z != x:  D = K log b_z - S + K alpha / (1 - alpha) (log b_z - log b_x) - log(kappa) / kappa

    `logits` [..., K] of p, normalised or not; `z`, `x`, `alpha`, `dalpha` [...] -> nats [...], float64. The K-wide work is
    done in the dtype of `logits`; what is left, large terms that cancel, in float64.
    """
    k, alpha, dalpha = logits.shape[-1], alpha.double(), dalpha.double()
    terms = LogMixture.apply(logits, (k * alpha).to(logits.dtype), (1 - alpha).to(logits.dtype), z, x)
    log_b, log_b_z, log_b_x = (term.double() for term in terms)
    spread = k * log_b_z - log_b
    kappa = (1 - alpha) / (k * alpha + 1 - alpha)
    same = kappa * spread + (k - 1) * kappa * kappa.log()
    other = spread + k * alpha / (1 - alpha) * (log_b_z - log_b_x) - kappa.log() / kappa
    own = z == x
    reached = k * alpha * own + 1 - alpha
    return dalpha / (k * alpha) * (k / reached - k * (-log_b_z).exp() - torch.where(own, same, other))
