"""Samplers and losses as the papers define them, slow and plain: every position, every state, nothing left out.

What fast ones are held against: by the tests in law and gradients, by benchmarks/sampling.py and training.py in time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from redraft.families.base import DiffusionFamily, Family
from redraft.families.duo import Duo
from redraft.families.esolm import EsoLM
from redraft.families.mdlm import MDLM
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.noise.kappa import even_times
from redraft.sampling.ordered import Ordered
from redraft.types import Batch, Canvas, Network

Transition = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(p0 [B, L, V], xt [B, L], t, s [B, 1]) -> the law of x_s, [B, L, K]."""


def posterior(family: DiffusionFamily) -> Transition:
    return family.posterior


def psi(family: DiffusionFamily, kappa: float) -> Transition:
    """kappa q(x_s | x_t, p0) + (1 - kappa) Forward_s(q(x_0 | x_t, p0)), families with one law of noise."""

    def law(p0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        alpha_s = family.schedule(s)[0][..., None]
        text = family.posterior(p0, xt, t, torch.zeros_like(s))
        one = torch.ones_like(s[:1])
        pure = family.marginal(torch.zeros_like(xt[:1, :1]), one)[0, 0]
        left = family.schedule(one)[0][0, 0]
        pi = pure.clone()
        pi[0] = (pure[0] - left) / (1 - left)
        pi[1:] = pure[1:] / (1 - left)
        return kappa * family.posterior(p0, xt, t, s) + (1 - kappa) * (alpha_s * text + (1 - alpha_s) * pi)

    return law


def step(
    network: Network,
    family: DiffusionFamily,
    canvas: Canvas,
    t: float,
    s: float,
    law: Transition,
    generator: torch.Generator,
) -> Canvas:
    """One step of the reverse chain: every position predicted, its law formed over all K states, and raced for."""
    device = canvas.tokens.device
    times = [torch.full((len(canvas.tokens), 1), u, dtype=torch.float64, device=device) for u in (t, s)]
    logits = network.head(network.trunk(family.view(canvas.tokens, times[0])))
    p0 = family.interpret(logits.double(), canvas.tokens).exp()
    q = law(p0, canvas.tokens, *times)
    # The exponential race: argmax q / E with E standard exponentials, a draw from q.
    race = q / -torch.rand(q.shape, generator=generator, dtype=torch.float64, device=device).log()
    return canvas.write(race.argmax(-1))


def chain(network: Network, family: DiffusionFamily, canvas: Canvas, steps: int, law: Transition, seed: int) -> Canvas:
    """`steps` steps from the prior to text."""
    generator, grid = torch.Generator().manual_seed(seed), even_times(steps).tolist()
    index = torch.arange(len(canvas.tokens))
    canvas = canvas.write(family.prior(counter_rng.field(Key.of(seed), index, canvas.tokens.shape[1])))
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        canvas = step(network, family, canvas, t, s, law, generator)
    return canvas


def ordered_uncached(network: Network, family: EsoLM, canvas: Canvas, sampler: Ordered, key: Key, calls: int) -> Canvas:
    """The first `calls` calls of Eso-LM's sampler without a cache: one causal pass over the whole canvas each time."""
    length = canvas.tokens.shape[1]
    noise = counter_rng.field(key, torch.arange(len(canvas.tokens), device=canvas.tokens.device), length)
    order, event, _ = sampler.schedule(canvas.fixed, family.alpha_0, noise)
    canvas, token = canvas.write(family.prior(noise)), noise("token").gather(1, order)
    for now in range(min(calls, int(event.max()) + 1)):
        writing = event == now
        z = canvas.tokens.gather(1, order)
        hidden = network.trunk(family.view(z, order, (z != family.mask_id).sum(1)))
        log_p = network.head(hidden[writing]).log_softmax(-1)
        z = z.masked_scatter(writing, counter_rng.categorical(log_p, token[writing]))
        canvas = canvas.write(torch.zeros_like(z).scatter(1, order, z))
    return canvas


def whole_loss(network: Network, family: Family, batch: Batch, key: Key) -> Tensor:
    """The mean training loss with the logits of every token whole, [B, L, V]: the corruption is the family's own."""
    length = batch.tokens.shape[1]
    noise, t = counter_rng.field(key, batch.index, length), counter_rng.times(key.fold_in("time"), batch.index)[:, None]
    if isinstance(family, EsoLM):
        assert family.alpha_0 == 1
        z = batch.tokens.masked_fill(noise("corrupt") >= 1 - t, family.mask_id)
        order = family.order(z, noise, sequential=False)
        z, x = z.gather(1, order), batch.tokens.gather(1, order)
        log_p = network.head(network.trunk(family.view(z, order, (z != family.mask_id).sum(1)))).log_softmax(-1)
        return _taken(log_p, x).where(z == family.mask_id, 0.0).sum() / x.numel()
    assert isinstance(family, MDLM | Duo)
    xt = family.corrupt(batch.tokens, t, noise)
    log_p = network.head(network.trunk(family.view(xt, t))).log_softmax(-1)
    if isinstance(family, MDLM):
        return _taken(log_p, batch.tokens).where(xt == family.mask_id, 0.0).sum() / xt.numel()
    return whole_uniform_nats(log_p.exp(), xt, batch.tokens, *family.schedule(t)).sum() / xt.numel()


def whole_uniform_nats(p: Tensor, z: Tensor, x: Tensor, alpha: Tensor, dalpha: Tensor) -> Tensor:
    """Duo's integrand as the paper writes it, with b = K alpha p + 1 - alpha and xb the same of the true token:
    alpha' / (K alpha) [K / xb_z - K / b_z - sum_j xb_j / xb_z log(b_z xb_j / (b_j xb_z))]."""
    k, alpha, dalpha = p.shape[-1], alpha.to(p.dtype)[..., None], dalpha.to(p.dtype)[..., None]
    b, xb = k * alpha * p + 1 - alpha, k * alpha * torch.nn.functional.one_hot(x, k) + 1 - alpha
    b_z, xb_z = b.gather(-1, z[..., None]), xb.gather(-1, z[..., None])
    terms = (xb / xb_z * (b_z * xb / (b * xb_z)).log()).sum(-1, keepdim=True)
    return (dalpha / (k * alpha) * (k / xb_z - k / b_z - terms))[..., 0]


def _taken(log_p: Tensor, ids: Tensor) -> Tensor:
    return -log_p.gather(-1, ids[..., None])[..., 0]
