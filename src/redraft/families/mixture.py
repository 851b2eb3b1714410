"""log sum_v of a softmax mixed with a constant, and its gradient: the term that bounds of uniform noise are made of.

    b_j = scale softmax(logits)_j + rest

Duo and GIDD charge for sum_j log b_j and for log b at the token seen and at the true one, and never need b itself. Their
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

    Noise came upon x_t since s with weight `arrived`: upon what was still text with alpha_s, else upon noise, `new` [B, L].
    All of this over alpha_t p(x_t) + here, which is at least `here`: so where the uniform would leave a token in its place
    even then, nobody needs to know p(x_t), and it is not predicted. An x_t that is no text id has p(x_t) = 0.

    `here` and the weights are [B, 1] or [B, L], the host's where no x_t decides them: then no device is waited for.
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

    def told(log_p: Tensor, seen: Tensor, token: Tensor) -> Tensor:
        """p(x_t) and a draw of x_0, of a few rows, [R, 2] in float64: ids are whole numbers below 2^53."""
        own = log_p.gather(-1, seen.clamp(max=log_p.shape[-1] - 1)[:, None])[:, 0].double().exp()
        own = own.masked_fill(seen >= log_p.shape[-1], 0.0)
        return torch.stack([own, categorical(log_p, token).double()], -1)

    own, drawn = predict.each(told, places, seen, token).unbind(-1)
    u = u * (here + alpha_t * own)
    moved = torch.where(u < arrived * alpha_s, drawn, new).where(u < arrived, seen.double())
    return xt.flatten().index_copy(0, places, moved.long()).view_as(xt)
