"""Laws 2, 3 (in exact arithmetic) and 4: marginals and posteriors fit together; closed forms are the definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from redraft.families.base import DiffusionFamily
from redraft.families.duo import Duo, uniform_nats
from redraft.families.mdlm import MDLM
from redraft.noise.schedules import SCHEDULES
from redraft.sampling.base import Prediction
from redraft.types import Noise
from tests.laws.cases import WITH_CLOCK, Case
from tests.rate_bound import rate_bound
from tests.rounding import log_mixture_off
from tests.world import TEXTS, L, P, V, states


def at(value: float, rows: int = 1) -> Tensor:
    return torch.full((rows, 1), value, dtype=torch.float64)


def clocked(case: Case) -> DiffusionFamily:
    assert isinstance(case.family, DiffusionFamily)
    return case.family


def seen_at(family: DiffusionFamily, t: float) -> list[int]:
    """The states that a token may be in at time t: without [MASK] where noise is never that."""
    return (family.marginal(torch.arange(V)[:, None], at(t, V)).amax((0, 1)) > 0).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("case", WITH_CLOCK, ids=repr)
def test_posterior_and_marginal_obey_the_chain_law(case: Case) -> None:
    """sum over x_t of q(x_s | x_t, x_0) q(x_t | x_0) = q(x_s | x_0)."""
    family = clocked(case)
    for x0 in range(V):
        clean = torch.tensor([[x0]])
        q_t, q_s = family.marginal(clean, at(0.7))[0, 0], family.marginal(clean, at(0.3))[0, 0]
        p0 = torch.nn.functional.one_hot(clean, V).double()
        parts = [family.posterior(p0, torch.tensor([[k]]), at(0.7), at(0.3))[0, 0] for k in range(len(q_t))]
        assert torch.allclose(q_t @ torch.stack(parts), q_s, atol=1e-12)


@pytest.mark.parametrize("case", WITH_CLOCK, ids=repr)
def test_ancestral_chain_tends_to_the_data(case: Case) -> None:
    """The transition matrix over all states, no sampling: total variation falls in proportion to the step."""
    coarse, fine = (_reversal_error(case, steps) for steps in (16, 64))
    assert fine < 0.02
    assert fine < coarse / 3


def _reversal_error(case: Case, steps: int) -> float:
    family = clocked(case)
    prior = family.prior(lambda purpose: torch.zeros(1, 1, dtype=torch.float64))
    ids = family.marginal(TEXTS[:1], at(0.5)).shape[-1]
    seen = states(ids)
    start = _prior_law(family, ids) if prior.numel() else None
    assert start is not None
    law = torch.stack([start[seen[:, place]] for place in range(L)]).prod(0)
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    if float(family.schedule(at(1e-12))[1]) < -1e3:
        # GIDD's uniform noise comes as sqrt(t): in equal steps the error falls as log(S) / S, in these as 1 / S.
        grid = grid**2 * (3 - 2 * grid)
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        t_rows, s_rows = at(t, len(seen)), at(s, len(seen))
        p0 = family.interpret(case.oracle.trunk(family.view(seen, t_rows)), seen).exp()
        step = family.posterior(p0, seen, t_rows, s_rows)
        law = law @ torch.stack([step[:, place][:, seen[:, place]] for place in range(L)]).prod(0)
    data = {tuple(x): p for x, p in zip(TEXTS.tolist(), P.tolist(), strict=True)}
    return 0.5 * sum(abs(p - data.get(tuple(x), 0.0)) for x, p in zip(seen.tolist(), law.tolist(), strict=True))


def _prior_law(family: DiffusionFamily, ids: int) -> Tensor:
    """The law of `prior`, read off an even grid of uniforms: exact when its masses are multiples of 1/N."""
    n = 60
    grid = ((torch.arange(n) + 0.5) / n)[:, None].double()
    drawn = family.prior(lambda purpose: grid)
    return torch.bincount(drawn.flatten(), minlength=ids).double() / n


def product_grid(n: int, purposes: list[str]) -> tuple[Noise, int]:
    """Uniforms on an n x n grid over two purposes (a third shares the second's axis): frequencies within 2/n of masses."""
    first, second = torch.meshgrid(*(2 * [(torch.arange(n).double() + 0.5) / n]), indexing="ij")
    fields = {p: (first if i == 0 else second).reshape(-1, 1) for i, p in enumerate(purposes)}
    return lambda purpose: fields[purpose], n * n


@pytest.mark.parametrize("case", WITH_CLOCK, ids=repr)
def test_fast_step_has_the_law_of_the_posterior(case: Case) -> None:
    """`step` on an even grid of uniforms gives every outcome its posterior mass, to the grid's spacing."""
    family, n = clocked(case), 250
    p0 = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    ids = family.marginal(TEXTS[:1], at(0.5)).shape[-1]
    for seen in seen_at(family, 0.8):
        noise, rows = product_grid(n, ["move", "token", "replacement"])
        xt, t, s = torch.full((rows, 1), seen), at(0.8, rows), at(0.35, rows)
        believed = family.interpret(p0.log().expand(rows, 1, V), xt)
        drawn = family.step(Prediction(believed[:, 0].__getitem__, V), xt, t, s, noise)
        frequency = torch.bincount(drawn.flatten(), minlength=ids).double() / rows
        mass = family.posterior(believed[:1].exp(), xt[:1], t[:1], s[:1])[0, 0]
        assert (frequency - mass).abs().max() < 3 / n


@pytest.mark.parametrize("case", WITH_CLOCK, ids=repr)
def test_corrupt_has_the_law_of_the_marginal(case: Case) -> None:
    family, n = clocked(case), 250
    noise, rows = product_grid(n, ["corrupt", "replacement"])
    drawn = family.corrupt(torch.ones(rows, 1, dtype=torch.int64), at(0.4, rows), noise)
    mass = family.marginal(torch.ones(1, 1, dtype=torch.int64), at(0.4))[0, 0]
    frequency = torch.bincount(drawn.flatten(), minlength=len(mass)).double() / rows
    assert (frequency - mass).abs().max() < 3 / n


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_returns_its_own_derivative(name: str) -> None:
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64, requires_grad=True)
    alpha, dalpha = SCHEDULES[name]()(t)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    assert torch.allclose(slope, dalpha.detach(), atol=1e-12)
    assert (slope <= 0).all() and float(SCHEDULES[name]()(torch.zeros(1))[0]) == pytest.approx(1)


def _random_case(k: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p0 [B, 1, k], z, x [B, 1], t [B, 1]: every pair of z and x at many times."""
    generator = torch.Generator().manual_seed(seed)
    z, x = (m.reshape(-1, 1).repeat(8, 1) for m in torch.meshgrid(torch.arange(k), torch.arange(k), indexing="ij"))
    log_p = torch.randn(len(z), 1, k, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    t = torch.rand(len(z), 1, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    return log_p, z, x, t


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_duo_closed_form_is_the_rate_definition(schedule: str) -> None:
    log_p, z, x, t = _random_case(7, 0)
    alpha, dalpha = SCHEDULES[schedule]()(t)
    fast = uniform_nats(log_p, z, x, alpha, dalpha)
    slow = rate_bound(log_p.exp(), z, x, alpha, dalpha, torch.full((7,), 1 / 7, dtype=torch.float64))
    assert torch.allclose(fast, slow, rtol=1e-6, atol=1e-9)


def test_duo_closed_form_is_the_papers_sum() -> None:
    """The bound as the Duo paper writes it, term by term: alpha'/(K alpha) [K/xb_z - K/tb_z - sum_j xb_j/xb_z log(...)]."""
    k = 7
    log_p, z, x, t = _random_case(k, 1)
    alpha, dalpha = SCHEDULES["log_linear"]()(t)
    expected = torch.zeros_like(t)
    for row in range(len(z)):
        a, da, p = float(alpha[row]), float(dalpha[row]), log_p[row, 0].exp().tolist()
        xb = [k * a * (j == int(x[row])) + 1 - a for j in range(k)]
        tb = [k * a * p[j] + 1 - a for j in range(k)]
        n = int(z[row])
        bracket = sum(xb[j] / xb[n] * math.log(tb[n] * xb[j] / (tb[j] * xb[n])) for j in range(k))
        expected[row] = da / (k * a) * (k / xb[n] - k / tb[n] - bracket)
    assert torch.allclose(uniform_nats(log_p, z, x, alpha, dalpha), expected, rtol=1e-9, atol=1e-9)


def test_duo_closed_form_is_the_limit_of_discrete_steps() -> None:
    """KL(q(x_s | x_t, x_0) | q(x_s | x_t, p0)) / dt as dt -> 0."""
    family, dt = Duo(5), 1e-5
    log_p, z, x, t = _random_case(5, 2)
    true = family.posterior(torch.nn.functional.one_hot(x, 5).double(), z, t, t - dt)
    model = family.posterior(log_p.exp(), z, t, t - dt)
    step = (true * (true.clamp(min=1e-300) / model).log()).sum(-1) / dt
    assert torch.allclose(uniform_nats(log_p, z, x, *family.schedule(t)), step, rtol=2e-3, atol=1e-3)


def test_duo_float32_agrees_with_float64() -> None:
    """The training path: the K-wide reduction in float32, what cancels in float64. Each log b is off by `off`, so D by
    (2 K + 2 K alpha / (1 - alpha)) off at most, and K / b_z by that times off."""
    log_p, z, x, t = _random_case(64, 3)
    rows = torch.arange(0, len(z), 97)
    log_p, z, x, t = log_p[rows], z[rows], x[rows], t[rows]
    alpha, dalpha = SCHEDULES["log_linear"]()(t)
    exact, fast = (uniform_nats(given, z, x, alpha, dalpha) for given in (log_p, log_p.float()))
    b = 64 * alpha[..., None] * log_p.exp() + 1 - alpha[..., None]
    off = log_mixture_off(log_p, b.log()) * (2 + 2 * alpha / (1 - alpha) + 1 / b.gather(-1, z[..., None])[..., 0])
    assert ((fast - exact).abs() <= -dalpha / alpha * off).all()


def test_duo_gradients_are_those_of_the_closed_form() -> None:
    """The fused pass has its own backward: against finite differences, in float64, for z = x and z != x."""
    log_p, z, x, t = _random_case(4, 6)
    log_p = log_p.requires_grad_()
    alpha, dalpha = SCHEDULES["log_linear"]()(t)
    assert torch.autograd.gradcheck(
        lambda logits: uniform_nats(logits, z, x, alpha, dalpha), log_p, eps=1e-7, atol=1e-4
    )


def test_mdlm_closed_form_is_the_rate_definition() -> None:
    """CE / t on hidden tokens = the rate bound towards pi = [MASK], where the corruption can reach."""
    family, k = MDLM(6), 7
    log_p, z, x, t = _random_case(k, 4)
    keep = ((z == 6) | (z == x))[:, 0] & (x < 6)[:, 0]
    log_p, z, x, t = log_p[keep][..., :6].log_softmax(-1), z[keep], x[keep], t[keep]
    alpha, dalpha = family.schedule(t)
    p0 = torch.nn.functional.pad(family.interpret(log_p, z).exp(), (0, 1))
    pi = torch.nn.functional.one_hot(torch.tensor(6), 7).double()
    slow = rate_bound(p0, z, x, alpha, dalpha, pi)
    from tests.world import Oracle

    fast = family.token_nelbo(Oracle(), log_p, z, x, t)
    direct = torch.where(z == 6, -log_p.gather(-1, x[..., None])[..., 0] / t, 0.0)
    assert torch.allclose(fast, slow, rtol=1e-6, atol=1e-9) and torch.allclose(fast, direct, rtol=1e-9)


@pytest.mark.parametrize("k", [3, 7])
def test_duo_posterior_is_the_published_one(k: int) -> None:
    """As published: [a_t K p_v [v=z] + (a_ts - a_t)[v=z] + (a_s - a_t) p_v + (1-a_ts)(1-a_s)/K] / [K a_t p_z + 1-a_t]."""
    family = Duo(k)
    log_p, z, _, t = _random_case(k, 5)
    s = t * 0.6
    (a_t, _), (a_s, _) = family.schedule(t), family.schedule(s)
    p, own = log_p.exp(), torch.nn.functional.one_hot(z, k).double()
    a_t, a_s, ratio = a_t[..., None], a_s[..., None], (a_t / a_s)[..., None]
    top = a_t * k * p * own + (ratio - a_t) * own + (a_s - a_t) * p + (1 - ratio) * (1 - a_s) / k
    below = k * a_t * p.gather(-1, z[..., None]) + 1 - a_t
    assert torch.allclose(family.posterior(p, z, t, s), top / below, atol=1e-12)


def test_duo_prior_term_is_the_kl_from_uniform() -> None:
    family = Duo(11)
    q = family.marginal(torch.tensor([[4]]), at(1.0))[0, 0]
    assert family.prior_nats() == pytest.approx(float((q * (q * 11).log()).sum()), rel=1e-9)
