"""The analytic (Tweedie) sampler of score models: Lou et al. 2023 (SEDD, arXiv:2310.16834), algorithm 2; MDLM's code.

A step multiplies the staggered score by the transition, v by v (d = sigma_t - sigma_s, m = [MASK]):

    x_s ~ stag_v trans_v,  stag = e^d score + [v = m] (1 - e^d) sum score,  trans_v = e^-d [v = z] + (1 - e^-d) [z = m]

With MDLM's score of a hidden token, p0_v / (e^sigma_t - 1) and 1 at m, stag_v = alpha_s p0_v / (1 - alpha_t) and
stag_m = (1 - alpha_s) / (1 - alpha_t), finite at every time. The product is the ancestral posterior: same law, dearer
draw (every hidden token is predicted at every step, and redrawn over V + 1 states). Kept to reproduce published numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.families.base import Absorbing, Family
from redraft.network.device import flat_places, sent
from redraft.noise.counter_rng import Key, categorical
from redraft.noise.kappa import even_times
from redraft.sampling.base import ClockSampler, Denoiser, Step, absorbing_refusal, walk
from redraft.types import Canvas


@dataclass(frozen=True)
class Analytic(ClockSampler):
    """`steps` equal steps from t = 1 to t = 0; at 0 the staggered score has nothing left at [MASK]."""

    def refusal(self, family: Family) -> str | None:
        return absorbing_refusal(family)

    def __call__(self, denoiser: Denoiser, canvas: Canvas, key: Key) -> Iterator[Canvas]:
        family = denoiser.family
        assert isinstance(family, Absorbing)

        def move(step: Step) -> Tensor:
            xt = step.xt
            places = flat_places(sent(step.free, xt.device) & (xt == family.mask_id))
            if not len(places):
                return xt
            alpha_t, alpha_s = (family.schedule(u)[0].expand(xt.shape) for u in (step.t, step.s))
            its = (sent(part.flatten(), xt.device)[places] for part in (alpha_t, alpha_s, step.noise("token")))
            drawn = step.predict.each(tweedie_draw, places, *its)
            return xt.flatten().index_copy(0, places, drawn).view_as(xt)

        yield from walk(denoiser, canvas, key, even_times(self.steps), move)


def tweedie_draw(log_p: Tensor, alpha_t: Tensor, alpha_s: Tensor, u: Tensor) -> Tensor:
    """[R, V], [R] each -> ids [R], V for [MASK]."""
    return categorical(tweedie(log_p.exp(), alpha_t, alpha_s).log(), u)


def tweedie(p0: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """stag x trans of hidden tokens over V ids and [MASK]: [R, V], [R], [R] -> [R, V + 1], normalised."""
    alpha_t, alpha_s = alpha_t[:, None], alpha_s[:, None]
    text = alpha_s * p0 / (1 - alpha_t) * (1 - alpha_t / alpha_s)
    return torch.cat([text, (1 - alpha_s) / (1 - alpha_t)], -1)
