"""Laws of Psi and its schedules, as equalities of distributions: by enumeration, even grids of uniforms, or bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from redraft.families.base import DiffusionFamily
from redraft.families.mdlm import MDLM
from redraft.noise import counter_rng
from redraft.noise.kappa import KAPPAS, Constant, Rescale, loop_times, time_at
from redraft.noise.schedules import SCHEDULES
from redraft.sampling.ancestral import Ancestral
from redraft.sampling.base import Denoiser, Prediction, Step
from redraft.sampling.psi import Psi, psi_step
from redraft.types import Canvas
from tests.laws.cases import CASES, WITH_CLOCK, Case
from tests.laws.test_chain import at, clocked, seen_at
from tests.laws.test_more_samplers import frames
from tests.laws.test_sampling import KEY, small_network
from tests.world import TEXTS, L, P, V, states


def noise_of(family: DiffusionFamily, time: float) -> Tensor:
    """(1 - alpha_t) pi_t: the marginal without what survived to that time."""
    alpha, clean = family.schedule(at(time))[0][0, 0], torch.tensor([[0]])
    q = family.marginal(clean, at(time))[0, 0]
    return q - alpha * torch.nn.functional.one_hot(clean[0, 0], len(q))


def pi_of(family: DiffusionFamily, time: float = 1.0) -> Tensor:
    """What a forgotten token is drawn from."""
    return noise_of(family, time) / (1 - family.schedule(at(time))[0][0, 0])


def psi_law(family: DiffusionFamily, p0: Tensor, xt: Tensor, t: Tensor, s: Tensor, kappa: float) -> Tensor:
    """The definition: [B, L, K] from posterior and marginal alone."""
    alpha_s = family.schedule(s)[0][..., None]
    text = family.posterior(p0, xt, t, torch.zeros_like(s))
    return kappa * family.posterior(p0, xt, t, s) + (1 - kappa) * (alpha_s * text + noise_of(family, float(s[0, 0])))


@pytest.mark.parametrize("case", WITH_CLOCK, ids=repr)
def test_a_forgotten_token_is_drawn_from_the_prior(case: Case) -> None:
    """q(x_t | x_0) = alpha_t x_0 + (1 - alpha_t) pi_t, `sample_noise` draws from pi_t, `prior` from pi_1."""
    family, n = clocked(case), 600
    even = ((torch.arange(n).double() + 0.5) / n)[:, None]
    for x0, t in itertools.product(range(V), (0.3, 0.8, 1.0)):
        pi = pi_of(family, t)
        q, alpha = family.marginal(torch.tensor([[x0]]), at(t))[0, 0], family.schedule(at(t))[0][0, 0]
        assert torch.allclose(q, alpha * torch.nn.functional.one_hot(torch.tensor(x0), len(q)) + (1 - alpha) * pi)
        drawn = family.sample_noise(at(t, n), lambda purpose: even)
        assert torch.allclose(torch.bincount(drawn.flatten(), minlength=len(pi)).double() / n, pi, atol=1.5 / n)
    assert torch.equal(family.prior(lambda purpose: even), family.sample_noise(at(1.0, n), lambda purpose: even))


@pytest.mark.parametrize("case", WITH_CLOCK, ids=repr)
def test_a_position_whose_clock_stands_still_stays_and_is_not_predicted(case: Case) -> None:
    """`step` takes a time a position: each moves as in a step of its own, and those with s = t not at all."""
    family, rows = clocked(case), 200
    xt = family.prior(counter_rng.field(KEY, torch.arange(rows), L))
    p0 = torch.rand(rows, L, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log()
    believed, noise = family.interpret(p0, xt), counter_rng.field(KEY.fold_in("move"), torch.arange(rows), L)
    t, asked = at(0.9, rows), torch.zeros(rows, L, dtype=torch.bool)

    def rows_at(places: Tensor) -> Tensor:
        asked.view(-1)[places] = True
        return believed.flatten(0, 1)[places]

    predict = Prediction(rows_at, V)
    each = [family.step(predict, xt, t, at(s, rows), noise)[:, place] for place, s in enumerate((0.9, 0.5, 0.0))]
    asked.zero_()
    together = family.step(predict, xt, t, torch.tensor([[0.9, 0.5, 0.0]], dtype=torch.float64).expand(rows, L), noise)
    assert torch.equal(together, torch.stack(each, 1)) and torch.equal(together[:, 0], xt[:, 0])
    assert case.name == "hybrid" or not asked[:, 0].any()


@pytest.mark.parametrize(
    ("case", "kappa"),
    [
        (case, kappa)
        for case in WITH_CLOCK
        for kappa in ((1.0, 0.75, 0.0) if case.name == case.family.name else (0.75,))
    ],
    ids=str,
)
def test_psi_step_has_the_law_of_its_definition(case: Case, kappa: float) -> None:
    """On an even grid of uniforms: 16 for the fates, whose masses are multiples of 1/16 as alpha_s = 3/4, and n x n for the
    posterior, whose every edge costs at most 1/n. The prior shares an axis with the posterior, which it never meets."""
    family, n = clocked(case), 120
    t, s = 0.8, time_at(family.schedule, 0.75)
    axes = torch.meshgrid(*((torch.arange(m).double() + 0.5) / m for m in (16, n, n)), indexing="ij")
    fate, move, token = (axis.reshape(-1, 1) for axis in axes)
    fields = {"kappa": fate, "move": move, "token": token, "prior": token, "replacement": token}
    p0, rows = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64), len(fate)
    for seen in seen_at(family, t):
        xt = torch.full((rows, 1), seen)
        believed = family.interpret(p0.log().expand(rows, 1, V), xt)
        free = torch.ones_like(xt, dtype=torch.bool)
        step = Step(
            0, Prediction(believed[:, 0].__getitem__, V), xt, free, at(t, rows), at(s, rows), fields.__getitem__
        )
        drawn = psi_step(family, step, kappa)
        law = psi_law(family, believed[:1].exp(), xt[:1], at(t), at(s), kappa)[0, 0]
        assert (torch.bincount(drawn.flatten(), minlength=len(law)) / rows - law).abs().max() < 3 / n


@pytest.mark.parametrize("case", [c for c in CASES if c.name == "duo"], ids=repr)
def test_psi_at_kappa_one_is_ancestral_bit_for_bit(case: Case) -> None:
    """For a family whose ancestral sampler walks the same grid; the law of a masked one's is test_fast.py's."""
    network, canvas = (
        small_network(),
        Canvas(torch.ones(8, 11, dtype=torch.int64), torch.arange(11).lt(2).expand(8, -1)),
    )
    plain, psi = Denoiser(network, case.family), Denoiser(network, case.family)
    ancestral = frames(Ancestral(12), plain, canvas)
    assert all(map(torch.equal, ancestral, frames(Psi(12, kappa=1.0), psi, canvas)))
    assert (plain.calls, plain.rows) == (psi.calls, psi.rows)
    assert all(map(torch.equal, ancestral, frames(Psi(12, kappa=0.0, on=0.3, off=0.9), psi, canvas)))


@pytest.mark.parametrize("kappa", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("case", WITH_CLOCK, ids=repr)
def test_psi_keeps_the_marginals_of_one_token(case: Case, kappa: float) -> None:
    """The chain law: sum over x_t of psi(x_s | x_t, x_0) q(x_t | x_0) = q(x_s | x_0), at any kappa, moving or standing."""
    family = clocked(case)
    for x0, (t, s) in itertools.product(range(V), ((0.7, 0.3), (0.7, 0.7))):
        clean = torch.tensor([[x0]])
        q_t, q_s = family.marginal(clean, at(t))[0, 0], family.marginal(clean, at(s))[0, 0]
        p0, every = torch.nn.functional.one_hot(clean, V).double(), range(len(q_t))
        parts = [psi_law(family, p0, torch.tensor([[k]]), at(t), at(s), kappa)[0, 0] for k in every]
        assert torch.allclose(q_t @ torch.stack(parts), q_s, atol=1e-12)


@pytest.mark.parametrize("case", WITH_CLOCK, ids=repr)
def test_psi_corrects_one_position_without_disturbing_the_joint_law(case: Case) -> None:
    """At a standing time, with the exact denoiser and one free position, q_t over whole texts is stationary."""
    family, t = clocked(case), 0.6
    seen = states(len(pi_of(family)))
    rows = at(t, len(seen))
    by_text = family.marginal(TEXTS, at(t, len(TEXTS)))  # [27, L, K]
    law = P @ torch.stack([by_text[:, place][:, seen[:, place]] for place in range(L)]).prod(0)
    p0 = family.interpret(case.oracle.trunk(family.view(seen, rows)), seen).exp()
    step = psi_law(family, p0, seen, rows, rows, 0.3)
    for place in range(L):
        others = [other for other in range(L) if other != place]
        same = (seen[:, None, others] == seen[None, :, others]).all(-1)
        assert torch.allclose(law @ (step[:, place][:, seen[:, place]] * same), law, atol=1e-12)


@pytest.mark.parametrize("name", KAPPAS)
def test_psi_with_remdms_kappa_is_remdm(name: str) -> None:
    """ReMDM's posterior, written from the paper (arXiv:2503.00307, eq. 5), with sigma cut at 1 - alpha_s as kappa >= 0."""
    family, eta = MDLM(V), 0.2
    p0 = torch.tensor([[[0.5, 0.2, 0.3]]], dtype=torch.float64)
    for t, s in ((1.0, 0.75), (0.5, 0.25), (0.25, 0.125), (0.25, 0.0)):
        a_t, a_s = 1 - t, 1 - s
        largest = min(1.0, (1 - a_s) / a_t) if a_t else 1.0
        sigma = {"sigma": eta, "cap": min(eta, largest), "rescale": eta * largest}[name]
        sigma = min(sigma, 1 - a_s)
        kappa = float(KAPPAS[name](eta)(torch.tensor(a_t).double(), torch.tensor(a_s).double()))
        hidden, visible = (psi_law(family, family.interpret(p0.log(), torch.tensor([[z]])).exp(), torch.tensor([[z]]),
                                   at(t), at(s), kappa)[0, 0] for z in (V, 1))  # fmt: skip
        reveal, stay = (a_s - (1 - sigma) * a_t) / (1 - a_t), (1 - a_s - sigma * a_t) / (1 - a_t)
        assert torch.allclose(hidden, torch.cat([reveal * p0[0, 0], torch.tensor([stay]).double()]), atol=1e-12)
        assert torch.allclose(visible, torch.tensor([0, 1 - sigma, 0, sigma]).double(), atol=1e-12)


def test_rescale_is_eta_not_eta_squared() -> None:
    """Where (1 - alpha_s) / alpha_t exceeds eta the official code multiplies by eta twice."""
    a_t, a_s = torch.tensor(0.5).double(), torch.tensor(0.6).double()
    assert float(Rescale(0.05)(a_t, a_s)) == pytest.approx(1 - 0.05 * 0.8 / 0.4)
    assert float(Constant(0.3)(a_t, a_s)) == pytest.approx(0.3)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [3, 10, 64])
def test_loop_comes_down_stays_and_comes_down(name: str, steps: int) -> None:
    schedule = SCHEDULES[name]()
    plateau = time_at(schedule, 0.9)
    assert float(schedule(at(plateau))[0]) == pytest.approx(0.9, abs=1e-12)
    grid, kappa = Psi(steps, kappa=0.0, profile="loop").plan(schedule)
    assert torch.equal(grid, loop_times(schedule, steps, 0.9, 0.45, 0.5)) and len(grid) == steps + 1
    assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() <= 0).all()
    standing = grid.diff() == 0
    assert torch.equal(kappa, (~standing).double()) and bool((grid[:-1][standing] == plateau).all())
    assert steps < 10 or standing.sum() == round(0.5 * steps)
