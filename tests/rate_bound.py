"""The continuous-time bound from rates alone: what the closed forms of the families are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.noise.kernels import marginal


def rate_bound(
    p0: Tensor, xt: Tensor, x0: Tensor, alpha: Tensor, dalpha: Tensor, pi: Tensor, dpi: Tensor | None = None
) -> Tensor:
    """The continuous-time bound's integrand, in nats, from rates alone (Campbell et al. 2022, arXiv:2205.14987).

        R(x_t) sum_y [ r_p(y) - r_q(y) - r_q(y) log(r_p(y) / r_q(y)) ],   r(y) = q_t(y) / q_t(x_t)

    where R(x) = -alpha'/alpha pi(x) + (1 - alpha) pi'(x) is the forward rate into x from any other state (the same for all
    of them); `dpi` = pi' [..., K], by default 0.
    """
    clean = torch.nn.functional.one_hot(x0, pi.shape[-1]).to(p0.dtype)
    true, model = marginal(clean, alpha, pi), marginal(p0, alpha, pi)
    r_q = true / true.gather(-1, xt[..., None])
    r_p = model / model.gather(-1, xt[..., None])
    tiny = torch.finfo(p0.dtype).tiny
    log_ratio = torch.where(r_q > 0, r_q * (r_p.clamp(min=tiny) / r_q.clamp(min=tiny)).log(), 0.0)
    rate = -dalpha / alpha * _at(pi, xt)
    if dpi is not None:
        rate = rate + (1 - alpha) * _at(dpi, xt)
    return rate * (r_p - r_q - log_ratio).sum(-1)


def _at(law: Tensor, states: Tensor) -> Tensor:
    """Probabilities [...] of `states` [...] under `law` [..., K]."""
    return law.expand(*states.shape, -1).gather(-1, states[..., None])[..., 0]
