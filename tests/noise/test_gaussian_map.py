"""The Gaussian bridge: its alpha is a probability that can be counted, its derivative autograd's, its races the dense law."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.noise.gaussian_map import (
    FIRST,
    LAST,
    GaussianMap,
    OrderStatistics,
    amplitudes,
    gamma_at,
    gaussians,
    race,
    tempered,
    uniform_alpha,
)

KEY = Key.of(11)
VOCABS = (50, 32000)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("vocab", [2, 3, 50, 257, 32000, 131072])
@pytest.mark.parametrize("gamma", [-6.0, -3.55, -1.85, 0.0, 3.0])
def test_alpha_is_the_integral(vocab: int, gamma: float) -> None:
    mu = math.exp(-gamma / 2)
    wins, _ = integrate.quad(
        lambda y: stats.norm.pdf(y - mu) * math.exp((vocab - 1) * stats.norm.logcdf(y)),
        mu - 12,
        mu + 12,
        points=[4, mu],
        epsabs=1e-13,
        epsrel=1e-12,
        limit=500,
    )
    expected = (vocab * wins - 1) / (vocab - 1)
    assert float(uniform_alpha(scalar(gamma), vocab)[0]) == pytest.approx(expected, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("degree", [0, 5, 9])
@pytest.mark.parametrize("vocab", [3, 257, 50258])
def test_derivative_is_autograd_of_alpha(vocab: int, degree: int) -> None:
    bridge = GaussianMap(vocab, gamma_at(FIRST, vocab), gamma_at(LAST, vocab), degree)
    t = torch.linspace(0, 1, 41, dtype=torch.float64, requires_grad=True)
    alpha, dalpha = bridge(t)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    assert torch.allclose(dalpha, slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("vocab", [257, 50258])
def test_polynomials_approach_the_integral(vocab: int) -> None:
    low, high = gamma_at(FIRST, vocab), gamma_at(LAST, vocab)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    exact = GaussianMap(vocab, low, high)(t)[0]
    errors = [float((GaussianMap(vocab, low, high, degree)(t)[0] - exact).abs().max()) for degree in (5, 9, 13)]
    assert errors[1] < 1e-4 and errors[0] > 10 * errors[1] > 100 * errors[2]


def test_polynomials_are_kept_apart_by_vocabulary_and_range() -> None:
    t = scalar(0.5)
    values = [float(GaussianMap(*of, degree=9)(t)[0]) for of in ((50, -3.0, 0.0), (500, -3.0, 0.0), (50, -2.0, 0.0))]
    assert len({round(v, 6) for v in values}) == 3


def test_default_range_is_the_papers_on_its_vocabulary() -> None:
    assert gamma_at(FIRST, 50257) == pytest.approx(-3.55, abs=1e-3)
    assert gamma_at(LAST, 50257) == pytest.approx(-1.85, abs=1e-3)


def counted(vocab: int, gamma: float, form: str, samples: int) -> Tensor:
    """z of `samples` tokens, all x = 1: [N]."""
    rows, length = 100, samples // 100
    x0, at = torch.ones(rows, length, dtype=torch.int64), torch.full((rows, 1), gamma, dtype=torch.float64)
    index = torch.arange(rows)
    if form == "sparse":
        return race(x0, vocab, min(3, vocab - 1), counter_rng.field(KEY, index, length)).argmax(x0, at).flatten()
    return torch.cat(
        [
            tempered(x0[i : i + 1], at[i : i + 1], gaussians(KEY, index[i : i + 1], length, vocab), 1e-3)[0]
            for i in index
        ]
    ).flatten()


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("level", [0.05, 0.5, 0.95])
def test_argmax_is_the_token_as_often_as_alpha_says(vocab: int, form: str, level: float) -> None:
    """P(z = x) = alpha + (1 - alpha) / V, within 4 standard errors of a count."""
    gamma = gamma_at(level, vocab)
    samples = 1000 if (form, vocab) == ("dense", 32000) else 40_000
    kept = (counted(vocab, gamma, form, samples) == 1).double().mean()
    alpha = float(uniform_alpha(scalar(gamma), vocab)[0])
    expected = alpha + (1 - alpha) / vocab
    assert abs(float(kept) - expected) < 4 * math.sqrt(expected * (1 - expected) / samples)


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_other_argmaxes_are_uniform(form: str) -> None:
    """Chi-square of the tokens that z is when it is not x, at the 1e-4 level."""
    vocab, samples = 7, 60_000
    counts = torch.bincount(counted(vocab, 0.5, form, samples), minlength=vocab).double()
    others = counts[torch.arange(vocab) != 1]
    expected = others.sum() / (vocab - 1)
    assert float(((others - expected) ** 2 / expected).sum()) < stats.chi2.isf(1e-4, vocab - 2)


def test_race_of_all_rivals_is_the_dense_softmax() -> None:
    """With k = V - 1 rivals nothing is approximated: the weights are those of the Gaussians it drew."""
    vocab, tau = 5, 0.3
    x0, gamma = torch.tensor([[0, 3, 4]]), torch.tensor([[0.2]], dtype=torch.float64)
    run = race(x0, vocab, vocab - 1, counter_rng.field(KEY, torch.arange(1), 3))
    weights, ids = run.softmax(x0, gamma, tau, vocab)
    eps = torch.zeros(1, 3, vocab, dtype=torch.float64)
    eps.scatter_(-1, ids, torch.cat([run.own[..., None], run.rivals], -1))
    z, dense = tempered(x0, gamma, eps, tau)
    assert torch.equal(z, run.argmax(x0, gamma))
    assert torch.allclose(torch.zeros_like(dense).scatter(-1, ids, weights), dense, atol=1e-12)
    assert (ids.sort(-1).values == torch.arange(vocab)).all()


@pytest.mark.parametrize("tau", [0.02, 0.5, 2.0])
def test_weights_left_out_are_in_the_denominator_by_their_mean(tau: float) -> None:
    """E[exp(S e / tau) | e < bound] against a quadrature of the truncated Gaussian."""
    vocab = 40
    gamma, rivals = torch.tensor([[0.0]], dtype=torch.float64), torch.tensor([[[1.5, 1.1]]], dtype=torch.float64)
    run = OrderStatistics(torch.tensor([[0.3]], dtype=torch.float64), rivals, torch.tensor([[[7, 9]]]))
    weights, _ = run.softmax(torch.tensor([[3]]), gamma, tau, vocab)
    a, s = (float(part) for part in amplitudes(gamma))
    below, _ = integrate.quad(lambda e: math.exp(s * e / tau) * stats.norm.pdf(e), -12, 1.1)
    raw = [math.exp((a + s * 0.3) / tau), math.exp(s * 1.5 / tau), math.exp(s * 1.1 / tau)]
    total = sum(raw) + (vocab - 3) * below / stats.norm.cdf(1.1)
    assert weights.flatten().tolist() == pytest.approx([r / total for r in raw], rel=1e-9)


def test_rivals_are_the_largest_of_gaussians() -> None:
    """Order statistics: the largest of n = V - 1 Gaussians has distribution function Phi^n, and the k-th its own Beta law."""
    vocab, x0 = 30, torch.zeros(200, 200, dtype=torch.int64)
    run = race(x0, vocab, 3, counter_rng.field(KEY, torch.arange(200), 200))
    assert (run.rivals[..., :-1] > run.rivals[..., 1:]).all()
    for k in range(3):
        u = stats.norm.cdf(run.rivals[..., k].flatten().numpy())
        assert stats.kstest(u, stats.beta(vocab - 1 - k, k + 1).cdf).pvalue > 1e-4


def test_path_of_a_token_is_one_function_of_time() -> None:
    """The same race at every gamma: once a rival has overtaken a token it stays ahead, and it is always the same one."""
    x0 = torch.zeros(50, 20, dtype=torch.int64)
    run = race(x0, 300, 1, counter_rng.field(KEY, torch.arange(50), 20))
    path = torch.stack([run.argmax(x0, torch.full((50, 1), g, dtype=torch.float64)) for g in (-6, -3, -1, 1, 3)])
    lost = path != x0
    assert (lost[1:] | ~lost[:-1]).all() and lost[-1].double().mean() > 0.9
    assert ((path == run.ids[..., 0]) | ~lost).all()
