"""Forward kernels by definition, slow and general: corruption of one token towards a distribution pi over K states.

    q(x_t | x_0) = alpha_t x_0 + (1 - alpha_t) pi_t

pi = [MASK] is masked diffusion, pi = 1/K uniform-state diffusion; GIDD's pi_t moves between mixtures of the two. Families
carry closed forms; tests hold them to these. All tensors are probabilities over K states in the last dimension, and a
law is [K] or broadcastable to [..., K].
"""

from __future__ import annotations

import torch
from torch import Tensor


def marginal(p0: Tensor, alpha: Tensor, pi: Tensor) -> Tensor:
    """q(x_t | x_0 ~ p0): `p0` [..., K], `alpha` broadcastable to [...], `pi` [..., K].

    >>> marginal(torch.tensor([1.0, 0.0, 0.0]), torch.tensor(0.25), torch.tensor([0.0, 0.0, 1.0]))  # the last state is [MASK]
    tensor([0.2500, 0.0000, 0.7500])
    """
    alpha = alpha[..., None]
    return alpha * p0 + (1 - alpha) * pi


def posterior(
    p0: Tensor, xt: Tensor, alpha_t: Tensor, alpha_s: Tensor, pi: Tensor, pi_s: Tensor | None = None
) -> Tensor:
    """q(x_s | x_t, x_0 ~ p0) by Bayes, s < t: proportional to q(x_t | x_s) q(x_s | p0). `xt` [...] ids -> [..., K].

    q(x_t | x_s) = alpha_t / alpha_s x_s + (1 - alpha_t) pi_t - alpha_t / alpha_s (1 - alpha_s) pi_s, the one step that
    leads from the marginal at s to that at t. `pi_s` is by default `pi`, a law that does not move.
    """
    ratio, pi_s = alpha_t / alpha_s, pi if pi_s is None else pi_s
    onehot = torch.nn.functional.one_hot(xt, pi.shape[-1]).to(p0.dtype)
    arrival = (1 - alpha_t) * _at(pi, xt) - ratio * (1 - alpha_s) * _at(pi_s, xt)
    likelihood = ratio[..., None] * onehot + arrival[..., None]
    joint = likelihood * marginal(p0, alpha_s, pi_s)
    # A state that cannot be reached has an all-zero joint: any answer will do, zeros are returned.
    return joint / joint.sum(-1, keepdim=True).clamp(min=torch.finfo(joint.dtype).tiny)


def _at(law: Tensor, states: Tensor) -> Tensor:
    """Probabilities [...] of `states` [...] under `law` [..., K]."""
    return law.expand(*states.shape, -1).gather(-1, states[..., None])[..., 0]
