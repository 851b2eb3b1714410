"""XDLM against the definitions in noise/kernels.py, the formulas of its paper, and the two families that it lies between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import DiffusionFamily, build
from redraft.families.duo import Duo
from redraft.families.mdlm import MDLM
from redraft.families.xdlm import XDLM
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.noise.schedules import Cosine, Linear, LogLinear
from redraft.sampling.base import Prediction
from tests.laws.test_baselines import on_states, random_case
from tests.laws.test_bound import Wrong
from tests.rate_bound import rate_bound
from tests.world import TEXTS, Exact, L, LeaveOneOut, Oracle, V, states

K = 6


@pytest.mark.parametrize("schedule", [Linear(), LogLinear(), Cosine()], ids=["linear", "log_linear", "cosine"])
@pytest.mark.parametrize("uniform", [0.1, 0.9])
def test_closed_form_is_the_rate_definition(uniform: float, schedule: Linear) -> None:
    family = XDLM(K, uniform, schedule)
    log_p, z, x, t = random_case(K, 0, K + 1)
    slow = rate_bound(on_states(log_p.exp()), z, x, *schedule(t), family.law(t))
    assert torch.allclose(family.token_nelbo(Oracle(), log_p, z, x, t), slow, rtol=1e-6, atol=1e-9)


def test_closed_form_is_the_papers() -> None:
    """-alpha' r(z) / f(x, z) h(x, z, p), eqs. 9, 10, 14 and 15, with f(y, e) = alpha y_e + (1 - alpha) r(e)."""
    uniform = 0.3
    family = XDLM(K, uniform)
    log_p, z, x, t = random_case(K, 1, K + 1)
    alpha, dalpha = family.schedule(t)
    p, true = (on_states(y) for y in (log_p.exp(), torch.nn.functional.one_hot(x, K).double()))
    r = torch.tensor([uniform / K] * K + [1 - uniform], dtype=torch.float64)
    f, f_x = (alpha[..., None] * y + (1 - alpha[..., None]) * r for y in (p, true))
    at = lambda values, ids: values.gather(-1, ids[..., None])[..., 0]
    everywhere = (f_x[..., :K] / f[..., :K]).log().sum(-1)
    h = (at(true, z) - at(p, z)) / at(f, z) - (at(f_x, z) / at(f, z)).log() / alpha + (at(f_x, x) / at(f, x)).log()
    h = h + uniform * (1 - alpha) / (K * alpha) * everywhere
    expected = -dalpha * r[z] / at(f_x, z) * h
    assert torch.allclose(family.token_nelbo(Oracle(), log_p, z, x, t), expected, rtol=1e-6, atol=1e-9)


def test_closed_form_is_the_limit_of_discrete_steps() -> None:
    """KL(q(x_s | x_t, x_0) | q(x_s | x_t, p0)) / dt as dt -> 0, which knows of no rates."""
    family, dt = XDLM(5, 0.2), 1e-5
    log_p, z, x, t = random_case(5, 1, 6)
    true = family.posterior(torch.nn.functional.one_hot(x, 5).double(), z, t, t - dt)
    model = family.posterior(log_p.exp(), z, t, t - dt)
    step = (true * (true.clamp(min=1e-300) / model).log()).sum(-1) / dt
    assert torch.allclose(family.token_nelbo(Oracle(), log_p, z, x, t), step, rtol=5e-3, atol=1e-3)


def test_gradients_are_those_of_the_closed_form() -> None:
    log_p, z, x, t = random_case(3, 3, 4)
    bound = lambda logits: XDLM(3, 0.2).token_nelbo(Oracle(), logits, z, x, t)
    assert torch.autograd.gradcheck(bound, log_p.requires_grad_(), eps=1e-7, atol=1e-4)


# The limits: no uniform noise is MDLM, nothing else is Duo


LIMITS = [(XDLM(V, 0.0), MDLM(V), Exact()), (XDLM(V, 1.0), Duo(V, Linear()), LeaveOneOut())]


def same(ours: XDLM, theirs: DiffusionFamily) -> Tensor:
    """The states that the process of the limit can be in."""
    return states(V + 1 if isinstance(theirs, MDLM) else V)


@pytest.mark.parametrize(("ours", "theirs", "oracle"), LIMITS, ids=["mdlm", "duo"])
def test_a_limit_has_the_bound_of_its_family(ours: XDLM, theirs: DiffusionFamily, oracle: Oracle) -> None:
    seen, network = same(ours, theirs), Wrong(oracle)
    for t in (0.1, 0.5, 0.9):
        at = torch.full((len(seen), 1), t, dtype=torch.float64)
        hidden = network.trunk(ours.view(seen, at))
        for text in TEXTS[::5]:
            x0 = text.expand_as(seen)
            reached = theirs.marginal(x0, at).gather(-1, seen[..., None])[..., 0] > 0
            one, other = (f.token_nelbo(network, hidden, seen, x0, at) for f in (ours, theirs))
            assert torch.allclose(one[reached], other[reached], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("ours", "theirs", "oracle"), LIMITS, ids=["mdlm", "duo"])
def test_a_limit_takes_the_steps_of_its_family(ours: XDLM, theirs: DiffusionFamily, oracle: Oracle) -> None:
    """The same law of every step, and the same tokens from the same uniforms."""
    seen, rows = same(ours, theirs), 500
    p0 = torch.rand(1, 1, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    for t, s in ((0.9, 0.6), (0.4, 0.0)):
        at, to = (torch.full((len(seen), 1), u, dtype=torch.float64) for u in (t, s))
        own = theirs.interpret(p0.log().expand(*seen.shape, V), seen).exp()
        law = theirs.posterior(own, seen, at, to)
        assert torch.allclose(ours.posterior(own, seen, at, to)[..., : law.shape[-1]], law, atol=1e-12)
    xt = seen[torch.arange(rows) % len(seen)]
    noise = counter_rng.field(Key.of(0), torch.arange(rows), L)
    predict = Prediction(lambda places: p0[0].log().expand(len(places), V), V)
    at, to = (torch.full((rows, 1), u, dtype=torch.float64) for u in (0.7, 0.3))
    assert torch.equal(ours.step(predict, xt, at, to, noise), theirs.step(predict, xt, at, to, noise))
    assert torch.equal(ours.corrupt(xt.clamp(max=1), at, noise), theirs.corrupt(xt.clamp(max=1), at, noise))


# What is left at t = 1


@pytest.mark.parametrize("uniform", [0.1, 1.0])
def test_prior_term_is_the_kl_from_the_noise(uniform: float) -> None:
    family, one = XDLM(11, uniform, LogLinear()), torch.ones(1, 1, dtype=torch.float64)
    q, pi = family.marginal(torch.tensor([[4]]), one)[0, 0], family.law(one)[0, 0]
    assert family.prior_nats() == pytest.approx(float(torch.where(q > 0, q * (q / pi).log(), 0.0).sum()), rel=1e-9)
    assert XDLM(11, uniform).prior_nats() == 0


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=["linear", "cosine"])
def test_bound_is_finite_where_everything_is_noise(schedule: Linear) -> None:
    """At t = 1, in float32 as in training, with its gradient."""
    family, at = XDLM(50, 0.1, schedule), torch.full((4, 1), 1.0, dtype=torch.float64)
    logits = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x = torch.arange(12).view(4, 3)
    nats = family.token_nelbo(Oracle(), logits, torch.full_like(x, 50), x, at)
    nats.sum().backward()
    assert nats.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()


def test_settings_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"family.uniform must be in \[0, 1\], got 1.5"):
        build("xdlm", {"uniform": 1.5}, V)
    with pytest.raises(UserError, match=r"leaves 0\.001: the bound would be infinite\. Try: linear, cosine"):
        build("xdlm", {"uniform": 0.0, "schedule": "log_linear"}, V)
    assert build("xdlm", {"schedule": "log_linear"}, V).schedule == LogLinear()  # type: ignore[attr-defined]
