"""GIDD and SEDD against the definitions in noise/kernels.py, the formulas of their papers, and the families they contain."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import build
from redraft.families.gidd import GIDD
from redraft.families.mask_uniform import divergence
from redraft.families.mdlm import MDLM
from redraft.families.sedd import SEDD, score_entropy
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.noise.schedules import SCHEDULES, Hybrid, Linear
from redraft.noise.time_density import Power
from redraft.sampling.ancestral import Ancestral
from redraft.sampling.base import Denoiser, Prediction
from redraft.sampling.psi import Psi
from redraft.types import Canvas
from tests.laws.test_bound import Wrong
from tests.laws.test_sampling import small_network
from tests.rate_bound import rate_bound
from tests.rounding import log_mixture_off
from tests.world import TEXTS, Exact, L, Oracle, Score, V, states

UNIFORM = [0.0, 0.1, 0.2, 0.9]


def random_case(k: int, seed: int, ids: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p [B, 1, k], z below `ids`, x below k [B, 1], t [B, 1]: every pair of z and x at many times."""
    generator = torch.Generator().manual_seed(seed)
    z, x = (m.reshape(-1, 1).repeat(8, 1) for m in torch.meshgrid(torch.arange(ids), torch.arange(k), indexing="ij"))
    log_p = torch.randn(len(z), 1, k, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    t = torch.rand(len(z), 1, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    return log_p, z, x, t


def on_states(p: Tensor) -> Tensor:
    return torch.nn.functional.pad(p, (0, 1))


# --- GIDD: the process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uniform", UNIFORM)
def test_mixing_schedule_is_the_papers(uniform: float) -> None:
    """Section 4 as written; a share p_u of uniform noise at t = 1/2; text at t = 0, [MASK] at t = 1; its own derivative."""
    family = GIDD(V, uniform)
    b = 2 * uniform / (V * (1 - uniform))
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    c = b * (t * (1 - t)).sqrt()
    alpha, dalpha = family.schedule(t)
    masked, each = family.process.noise(t)
    for ours, theirs in ((alpha, 1 - t), (masked, t), (each, c)):
        assert torch.allclose(ours, theirs / (1 + V * c), rtol=1e-12)
    assert torch.allclose((masked / (1 - alpha)).detach(), family.law(t)[..., V].detach(), rtol=1e-9)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    assert torch.allclose(slope, dalpha.detach(), atol=1e-12) and (slope < 0).all()
    half = torch.tensor([[0.5]], dtype=torch.float64)
    assert V * float(family.process.noise(half)[1]) == pytest.approx(uniform)
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    q = family.marginal(torch.tensor([[1], [1]]), ends)[:, 0]
    assert q.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


def rates(family: GIDD, t: Tensor) -> tuple[Tensor, Tensor]:
    """pi and pi' [..., K], the latter by automatic differentiation."""
    t = t.detach().requires_grad_()
    law = family.law(t)
    slope = [torch.autograd.grad(law[..., j].sum(), t, retain_graph=True)[0] for j in range(law.shape[-1])]
    return law.detach(), torch.stack(slope, -1)


@pytest.mark.parametrize("uniform", UNIFORM)
def test_gidd_closed_form_is_the_rate_definition(uniform: float) -> None:
    """Every z, [MASK] included, and x that the corruption can lead to, at random times."""
    k = 6
    family = GIDD(k, uniform)
    log_p, z, x, t = random_case(k, 0, k + 1)
    keep = ((z == k) | (z == x))[:, 0] if uniform == 0 else torch.ones(len(z), dtype=torch.bool)
    log_p, z, x, t = log_p[keep], z[keep], x[keep], t[keep]
    alpha, dalpha = family.schedule(t)
    slow = rate_bound(on_states(log_p.exp()), z, x, alpha, dalpha, *rates(family, t))
    assert torch.allclose(family.token_nelbo(Oracle(), log_p, z, x, t), slow, rtol=1e-6, atol=1e-9)


def test_gidd_closed_form_is_the_limit_of_discrete_steps() -> None:
    """KL(q(x_s | x_t, x_0) | q(x_s | x_t, p0)) / dt as dt -> 0, which knows of no rates."""
    k, dt = 5, 1e-5
    family = GIDD(k, 0.2)
    log_p, z, x, t = random_case(k, 1, k + 1)
    true = family.posterior(torch.nn.functional.one_hot(x, k).double(), z, t, t - dt)
    model = family.posterior(log_p.exp(), z, t, t - dt)
    step = (true * (true.clamp(min=1e-300) / model).log()).sum(-1) / dt
    assert torch.allclose(family.token_nelbo(Oracle(), log_p, z, x, t), step, rtol=5e-3, atol=1e-3)


def test_gidd_divergence_is_the_papers_sum() -> None:
    """KL over all states plus IS at z, term by term; and in float32, whose logs are `off`: they stand in the KL with weights
    alpha and `each`, and the IS has slope ratio - 1 in one of them."""
    k = 6
    family = GIDD(k, 0.2)
    log_p, z, x, t = random_case(k, 2, k + 1)
    alpha, each = family.schedule(t)[0], family.process.noise(t)[1]
    q, b = (
        family.marginal(x, t),
        alpha[..., None] * on_states(log_p.exp()) + (1 - alpha[..., None]) * family.law(t)[:, None, 0],
    )
    ratio = (q / b).gather(-1, z[..., None])[..., 0]
    expected = (q * (q / b).log()).sum(-1) + ratio - ratio.log() - 1
    assert torch.allclose(divergence(log_p, z, x, alpha, each), expected, rtol=1e-9, atol=1e-12)
    fast = divergence(log_p.float(), z, x, alpha, each)
    off = log_mixture_off(log_p, (alpha[..., None] * log_p.exp() / each[..., None]).log1p())
    assert ((fast - expected).abs() <= off * (alpha + k * each + ratio + 1)).all()


def test_gidd_gradients_are_those_of_the_closed_form() -> None:
    log_p, z, x, t = random_case(3, 3, 4)
    family = GIDD(3, 0.2, "nelbo")
    assert torch.autograd.gradcheck(
        lambda logits: family.token_loss(Oracle(), logits, z, x, t), log_p.requires_grad_(), eps=1e-7, atol=1e-4
    )


@pytest.mark.parametrize("uniform", [0.1, 0.2])
def test_dynamic_weights_keep_the_ratios_of_the_bounds(uniform: float) -> None:
    """Two to one for [MASK] against a wrong id, at any time; the true id's from their code, B sqrt((1 - alpha) / alpha)."""
    family = GIDD(V, uniform)
    z, x, t = torch.tensor([[V, 0, 1]]), torch.tensor([[1, 1, 1]]), torch.tensor([[0.3]], dtype=torch.float64)
    bound, dynamic = (weight(z, x, t)[0] for weight in (family.bound_weight, family.dynamic_weight))
    assert float(bound[0] / bound[1]) == pytest.approx(2) and dynamic[:2].tolist() == [2, 1]
    alpha = float(family.schedule(t)[0])
    assert float(dynamic[2]) == pytest.approx(2 * uniform / (1 - uniform) / V * math.sqrt((1 - alpha) / alpha))


@pytest.mark.parametrize("t", [1 - 1e-6, 1.0])
def test_gidd_is_finite_where_everything_is_hidden(t: float) -> None:
    """The limit of the bound at t = 1, in float32 as in training, with its gradient."""
    family, at = GIDD(50, 0.1), torch.full((4, 1), t, dtype=torch.float64)
    logits = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x = torch.arange(12).view(4, 3)
    nats = family.token_nelbo(Oracle(), logits, torch.full_like(x, 50), x, at)
    nats.sum().backward()
    assert nats.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()


# --- GIDD: what it contains ----------------------------------------------------------------------------------------------


def test_gidd_without_uniform_noise_has_the_bound_of_mdlm() -> None:
    family, masked, network = GIDD(V, 0.0), MDLM(V), Wrong(Exact())
    seen = states(V + 1)
    for t in (0.1, 0.5, 0.9):
        at = torch.full((len(seen), 1), t, dtype=torch.float64)
        hidden = network.trunk(masked.view(seen, at))
        for text in TEXTS:
            x0 = text.expand_as(seen)
            reached = (seen == V) | (seen == x0)
            ours, theirs = (f.token_nelbo(network, hidden, seen, x0, at) for f in (family, masked))
            assert torch.allclose(ours[reached], theirs[reached], rtol=1e-9, atol=1e-12)


def test_gidd_without_uniform_noise_takes_the_steps_of_mdlm() -> None:
    """The same law of every step, and, as both draw first what moves, the same tokens from the same uniforms."""
    family, masked, rows = GIDD(V, 0.0), MDLM(V), 500
    p0 = torch.rand(1, 1, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    for t, s in ((0.9, 0.6), (0.7, 0.3), (0.4, 0.0)):
        at, to = (torch.full((1, 1), u, dtype=torch.float64) for u in (t, s))
        for z in range(V + 1):
            own = masked.interpret(p0.log(), torch.tensor([[z]])).exp()
            ours, theirs = (f.posterior(own, torch.tensor([[z]]), at, to) for f in (family, masked))
            assert torch.allclose(ours, theirs, atol=1e-12)
    xt = torch.full((rows, L), V).where(torch.rand(rows, L, generator=torch.Generator().manual_seed(3)) < 0.5, 1)
    noise = counter_rng.field(Key.of(0), torch.arange(rows), L)
    predict = Prediction(lambda places: p0[0].log().expand(len(places), V), V)
    at, to = (torch.full((rows, 1), u, dtype=torch.float64) for u in (0.7, 0.3))
    assert torch.equal(family.step(predict, xt, at, to, noise), masked.step(predict, xt, at, to, noise))
    assert torch.equal(family.corrupt(xt.clamp(max=1), at, noise), masked.corrupt(xt.clamp(max=1), at, noise))


def test_gidd_posterior_is_bayes_rule_on_the_forward_chain() -> None:
    """q(x_s | x_t, x_0) from the one-step matrix that leads from q_s to q_t, which is found by solving for it."""
    family, k = GIDD(V, 0.2), V + 1
    t, s = torch.tensor([[0.8]], dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64)
    (a_t, _), (a_s, _) = family.schedule(t), family.schedule(s)
    b_t, b_s = ((1 - a[0, 0]) * family.law(u)[0, 0] for a, u in ((a_t, t), (a_s, s)))
    ratio = a_t / a_s
    forward = ratio * torch.eye(k, dtype=torch.float64) + (b_t - ratio[0, 0] * b_s)  # [from, to]
    assert torch.allclose(forward.sum(1), torch.ones(k).double()) and (forward > -1e-15).all()
    for x0, z in itertools.product(range(V), range(k)):
        at_s = family.marginal(torch.tensor([[x0]]), s)[0, 0]
        joint = at_s * forward[:, z]
        clean = torch.nn.functional.one_hot(torch.tensor([[x0]]), V).double()
        assert torch.allclose(family.posterior(clean, torch.tensor([[z]]), t, s)[0, 0], joint / joint.sum(), atol=1e-12)


def test_psi_at_kappa_one_is_ancestral_for_gidd() -> None:
    family, network = GIDD(V, 0.2), small_network()
    canvas = Canvas(torch.ones(8, 11, dtype=torch.int64), torch.arange(11).lt(2).expand(8, -1))
    with torch.no_grad():
        one, other = (
            [frame.tokens for frame in sampler(Denoiser(network, family), canvas, Key.of(3))]
            for sampler in (Ancestral(12), Psi(12, kappa=1.0))
        )
    assert all(map(torch.equal, one, other))


# --- SEDD ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["mdlm", "sedd", "d3pm"])
def test_a_schedule_that_leaves_text_is_refused(family: str) -> None:
    """The prior is all [MASK]: the bound would pay an infinite KL for what survived to t = 1."""
    with pytest.raises(UserError, match=r"leaves 0\.001: the bound would be infinite\. Try: linear, cosine"):
        build(family, {"schedule": "log_linear"}, V)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_sedd_is_the_official_formula(schedule: str) -> None:
    """As published: log s = logit - log(expm1 sigma) - log V; sigma' (sum s - r log s_x + r (log r - 1)) where hidden,
    r = 1 / expm1(sigma), sigma' = -alpha' / alpha; at scores that are not normalised."""
    family = SEDD(V, SCHEDULES[schedule]())
    seen = states(V + 1)
    logits = torch.randn(len(seen), L, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    x0 = TEXTS[5].expand_as(seen)
    for t in (0.05, 0.5, 0.95):
        at = torch.full((len(seen), 1), t, dtype=torch.float64)
        alpha, dalpha = family.schedule(at)
        sigma = -alpha.log()[..., None]
        small = torch.where(sigma < 0.5, sigma.expm1(), sigma.exp() - 1)
        log_s, r = logits - small.log() - math.log(V), 1 / small[..., 0]
        entropy = log_s.exp().sum(-1) - r * log_s.gather(-1, x0[..., None])[..., 0] + r * (r.log() - 1)
        expected = torch.where(seen == V, -dalpha / alpha * entropy, 0.0)
        assert torch.allclose(family.token_nelbo(Oracle(), logits, seen, x0, at), expected, rtol=1e-9, atol=1e-12)


def test_sedd_with_normalised_scores_pays_what_mdlm_pays() -> None:
    family, masked, network = SEDD(V), MDLM(V), Wrong(Exact())
    seen, at = states(V + 1), torch.full((64, 1), 0.4, dtype=torch.float64)
    hidden, x0 = network.trunk(masked.view(seen, at)), TEXTS[20].expand_as(seen)
    scores = hidden.log_softmax(-1) + math.log(V)
    ours = family.token_nelbo(network, scores, seen, x0, at)
    assert torch.allclose(ours, masked.token_nelbo(network, hidden, seen, x0, at), rtol=1e-9)


def test_scores_that_are_not_normalised_cost_more_than_their_normalisation() -> None:
    """By Z - 1 - log Z, which is 0 at Z = 1 alone: so the bound is one at any scores, and exact scores are its minimum."""
    logits = torch.randn(50, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.arange(50) % V
    normal = logits.log_softmax(-1) + math.log(V)
    z = logits.exp().mean(-1)
    gap = score_entropy(logits, x) - score_entropy(normal, x)
    assert torch.allclose(gap, z - 1 - z.log(), atol=1e-12) and (gap > 0).all()
    hidden = Score().trunk(SEDD(V).view(torch.full((1, L), V), torch.ones(1, 1, dtype=torch.float64)))[0]
    exact = hidden.clone().requires_grad_()
    chance = (hidden - math.log(V)).exp()
    expected = sum((chance[:, v] * score_entropy(exact, torch.full((L,), v))).sum() for v in range(V))
    (slope,) = torch.autograd.grad(expected, exact)
    assert slope.abs().max() < 1e-12


def test_sedd_and_d3pm_refuse_what_reads_no_clock() -> None:
    from redraft.evaluation.likelihood.estimators import build as estimator
    from redraft.sampling.base import build as sampler

    for name in ("sedd", "d3pm"):
        family = build(name, {}, V)
        for refused in ("mask_count", "chain_rule", "importance_weighted"):
            own = {"sedd": "continuous_time", "d3pm": "discrete_time"}[name]
            with pytest.raises(UserError, match=f"'{refused}' cannot score family '{name}'.*Try: {own}"):
                estimator(refused, {}, family)
        with pytest.raises(UserError, match=r"its network reads the time.*Try: .*ancestral"):
            sampler("first_hitting", {}, family)


def test_settings_of_gidd_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"family.uniform must be in \[0, 1\), got 1"):
        build("gidd", {"uniform": 1.0}, V)
    with pytest.raises(UserError, match=r"unknown weights 'elbo'.*nelbo"):
        build("gidd", {"weights": "elbo"}, V)
    schedule = GIDD(V).schedule
    assert schedule == Hybrid(V, 0.1)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    assert all(map(torch.equal, Hybrid(V, 0.0)(t), Linear()(t)))


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_draws_of_gidds_bound_have_a_variance(share: float) -> None:
    """E[nats^2] of a wrong id by quadrature, t = u^3 as the bound draws it: what each decade of u adds falls
    to nothing. With even times it grows without bound."""
    family = build("gidd", {"uniform": share}, 50)
    assert isinstance(family, GIDD) and isinstance(family.bound_times, Power)

    def second_moment(low: float, high: float, time_exponent: int) -> float:
        u = torch.logspace(math.log10(low), math.log10(high), 2001, dtype=torch.float64)
        t = (u**time_exponent)[:, None]
        z, x = torch.zeros_like(t, dtype=torch.int64), torch.ones_like(t, dtype=torch.int64)
        nats = family.token_nelbo(Oracle(), torch.zeros(len(u), 1, 50, dtype=torch.float64), z, x, t)[:, 0]
        chance = (family.process.noise(t)[1] * 49)[:, 0]
        return float(torch.trapezoid(chance * (nats * time_exponent * u ** (time_exponent - 1)) ** 2, u))

    drawn, even = (
        [second_moment(10.0**-k, 10.0 ** (1 - k), e) for k in (2, 4, 6)] for e in (family.bound_times.exponent, 1)
    )
    assert drawn[2] < drawn[1] / 2 < drawn[0] / 4
    assert even[2] > 4 * even[1] > 16 * even[0]
