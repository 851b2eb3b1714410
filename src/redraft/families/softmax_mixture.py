"""sum_j log b_j for b = a softmax mixed with a constant, and its gradient: the V-wide term of bounds with uniform noise.

    b_j = scale softmax(logits)_j + rest

The bounds of Duo and GIDD use sum_j log b_j, and log b at the token seen and at the true one, never b itself. Their
reverse step is a mixture too, of staying, drawing from the prediction and drawing from noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from redraft.network.device import flat_places, sent
from redraft.noise.counter_rng import categorical
from redraft.types import Noise, Predict


class LogMixture(torch.autograd.Function):
    """sum_j log b_j, log b_z and log b_x of b = scale softmax(logits) + rest, in one pass that keeps only softmax.

    With g_j the gradient arriving at b_j, that of the logits is p_j scale (g_j - sum_i p_i g_i).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, scale: Tensor, rest: Tensor, z: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        p = logits.softmax(-1)
        log_b = torch.addcmul(rest[..., None], p, scale[..., None]).log_()
        log_b_z, log_b_x = (log_b.gather(-1, ids[..., None])[..., 0] for ids in (z, x))
        ctx.save_for_backward(p, scale, rest, z, x)
        return log_b.sum(-1), log_b_z, log_b_x

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        p, scale, rest, z, x = ctx.saved_tensors
        every, at_z, at_x = (g[..., None] for g in upstream)
        inverse = torch.addcmul(rest[..., None], p, scale[..., None]).reciprocal_()
        to_z, to_x = (at * inverse.gather(-1, ids[..., None]) for at, ids in ((at_z, z), (at_x, x)))
        g = inverse.mul_(every).scatter_add_(-1, z[..., None], to_z).scatter_add_(-1, x[..., None], to_x)
        g -= (g * p).sum(-1, keepdim=True)
        return g.mul_(p).mul_(scale[..., None]), None, None, None, None


def three_ways(
    predict: Predict,
    xt: Tensor,
    noise: Noise,
    new: Tensor,
    here: Tensor,
    arrived: Tensor,
    alpha_t: Tensor,
    alpha_s: Tensor,
) -> Tensor:
    """A draw of x_s [B, L] given x_t, x_0 ~ p, when q(x_t | p) = alpha_t p(x_t) + `here`: stay, draw from p, or from pi_s.

    With Z = alpha_t p(x_t) + here: draw from p with probability arrived alpha_s / Z, take `new` [B, L] (a draw of pi_s) with
    probability arrived (1 - alpha_s) / Z, else stay. Since Z >= `here`, a token whose uniform u has u here >= arrived stays
    whatever p(x_t) is, and no prediction is computed for it. An x_t that is no text id has p(x_t) = 0.

    `here` and the weights are [B, 1] or [B, L], on the CPU where they do not depend on x_t, which avoids a device sync.
    """
    parts = noise("move"), noise("token"), new.double(), here, arrived, alpha_t, alpha_s
    every = torch.stack([sent(part, here.device).expand(xt.shape).flatten() for part in parts])
    u, _, _, here, arrived, *_ = every
    places = flat_places((arrived > 0) & (u * here < arrived))
    if not len(places):
        return xt
    u, token, new, here, arrived, alpha_t, alpha_s = sent(every[:, places], xt.device)
    places = sent(places, xt.device)
    seen = xt.flatten()[places]
    own, drawn = predict.each(likely_and_drawn, places, seen, token).unbind(-1)
    u = u * (here + alpha_t * own)
    moved = torch.where(u < arrived * alpha_s, drawn, new).where(u < arrived, seen.double())
    return xt.flatten().index_copy(0, places, moved.long()).view_as(xt)


def likely_and_drawn(log_p: Tensor, seen: Tensor, u: Tensor) -> Tensor:
    """p(x_t) and a draw of x_0, [R, 2] in float64, of log p [R, V], x_t [R] and uniforms [R]: ids are whole numbers below
    2^53."""
    own = log_p.gather(-1, seen.clamp(max=log_p.shape[-1] - 1)[:, None])[:, 0].double().exp()
    own = own.masked_fill(seen >= log_p.shape[-1], 0.0)
    return torch.stack([own, categorical(log_p, u).double()], -1)
