"""Chains of T steps (`grid`): the bound is a sum of KLs by definition, and falls to that of continuous time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import Absorbing, build
from redraft.noise import counter_rng, kernels
from redraft.noise.counter_rng import Key
from redraft.noise.schedules import Linear
from tests.laws.cases import CASES
from tests.laws.test_bound import Wrong, expected_diffusion_nelbo
from tests.world import ENTROPY, TEXTS, Exact, L, Oracle, V, batch_of, states

GRIDDED = ["mdlm", "d3pm"]


def gridded(name: str, grid: int, **options: Any) -> Absorbing:
    family = build(name, {"grid": grid, **options}, V)
    assert isinstance(family, Absorbing)
    return family


def on_states(p: Tensor) -> Tensor:
    return torch.nn.functional.pad(p, (0, 1))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("name", GRIDDED)
def test_bound_at_every_grid_time_is_the_kl_of_its_step(name: str, schedule: str) -> None:
    """T KL(q(x_s | x_t, x_0) | q(x_s | x_t, p)), from the kernels' definitions, with a wrong denoiser, wherever the
    corruption can lead. At s = 0 the KL is the reconstruction term."""
    steps, network = 5, Wrong(Exact())
    family, pi = gridded(name, steps, schedule=schedule), torch.eye(V + 1, dtype=torch.float64)[V]
    seen = states(V + 1)
    for step in range(1, steps + 1):
        t, s = (torch.full((len(seen), 1), i / steps, dtype=torch.float64) for i in (step, step - 1))
        alpha_t, alpha_s = (family.schedule(u)[0].clamp(min=0).expand(seen.shape) for u in (t, s))
        hidden = network.trunk(family.view(seen, t))
        p0 = on_states(family.interpret(hidden, seen).exp())
        for text in TEXTS:
            x0 = text.expand_as(seen)
            clean = on_states(torch.nn.functional.one_hot(x0, V).double())
            q, p = (kernels.posterior(law, seen, alpha_t, alpha_s, pi) for law in (clean, p0))
            kl = torch.where(q > 0, q * (q.clamp(min=1e-300) / p.clamp(min=1e-300)).log(), 0.0).sum(-1)
            reached = (seen == x0) | (seen == V)
            nats = family.token_nelbo(network, hidden, seen, x0, t)
            assert torch.allclose(nats[reached], steps * kl[reached], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", GRIDDED)
@pytest.mark.parametrize("wrong", [False, True])
def test_bound_of_steps_falls_to_that_of_continuous_time(name: str, wrong: bool) -> None:
    """All enumerated. With alpha = 1 - t a token of a text pays 1 / t at the grid times instead of between them, and a text
    is never predicted more easily the more of it is hidden: T steps cost more, 2 T less so, and the excess goes as 1 / T."""
    network: Oracle = Wrong(Exact()) if wrong else Exact()
    limit = expected_diffusion_nelbo(gridded("mdlm", 0), network, 8)
    assert limit == pytest.approx(ENTROPY) if not wrong else limit > ENTROPY + 1e-3
    excess = [expected_diffusion_nelbo(gridded(name, steps), network, 0) - limit for steps in (1, 2, 4, 16, 64, 256)]
    assert all(later < earlier for earlier, later in zip(excess, excess[1:], strict=False)) and excess[-1] > 0
    assert excess[-1] < excess[-2] / 3.8


@pytest.mark.parametrize("name", GRIDDED)
def test_one_step_hides_everything_and_pays_for_it_once(name: str) -> None:
    family, network = gridded(name, 1), Wrong(Exact())
    tokens = TEXTS.repeat(3, 1)
    nothing = network.trunk(family.view(torch.full_like(tokens, V), torch.ones(len(tokens), 1)))
    paid = family.nelbo(network, batch_of(tokens), key=Key.of(0)).nats
    expected = -nothing.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    assert torch.allclose(paid, expected, atol=1e-12)


def test_times_are_those_of_the_grid_and_all_alike() -> None:
    """Every time that a network of T steps is shown is i / T, each as often as the next, to one in a run of samples."""
    seen: list[Tensor] = []

    class Watched(Exact):
        def trunk(self, view):  # type: ignore[no-untyped-def]
            seen.append(view.sigma)
            return super().trunk(view)

    n, steps = 2**10, 8
    tokens = torch.zeros(n, L, dtype=torch.int64)
    gridded("d3pm", steps).nelbo(Watched(), batch_of(tokens), key=Key.of(1))
    t = 1 - (-seen[0]).exp()[:, 0]
    # The clock stops where a ten-thousandth of the text is left, short of t = 1 by that.
    assert torch.allclose(t * steps, (t * steps).round(), atol=1e-9 + 1e-4 * steps)
    counts = torch.bincount((t * steps).round().long(), minlength=steps + 1)
    assert counts[0] == 0 and (counts[1:] - n / steps).abs().max() <= 3
    assert counter_rng.times(Key.of(1), torch.arange(n)).max() <= 1


def test_mdlm_on_a_grid_is_mdlm_in_the_limit() -> None:
    """At any one time, as T grows: the weight of a step tends to -alpha' / (1 - alpha)."""
    t = torch.tensor([[0.25], [0.5], [0.9]], dtype=torch.float64)
    for schedule in ("linear", "cosine"):
        whole, parts = (gridded("mdlm", grid, schedule=schedule).weight(t) for grid in (0, 2**20))
        assert torch.allclose(whole, parts, rtol=1e-5)


def test_grids_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"family.grid must be .*got -3"):
        build("mdlm", {"grid": -3}, V)
    with pytest.raises(UserError, match=r"family.grid must be at least 1 for d3pm, got 0: .*mdlm"):
        build("d3pm", {"grid": 0}, V)
    with pytest.raises(UserError, match=r"family.auxiliary must be at least 0, got -1"):
        build("d3pm", {"auxiliary": -1.0}, V)


def test_d3pm_trains_on_its_step_and_a_share_of_the_cross_entropy() -> None:
    """Their loss at a drawn time, KL + lambda CE, times T; CE alone is lambda's part, and lambda = 0 the bound."""
    network, steps = Wrong(Exact()), 10
    seen = states(V + 1)
    x0 = TEXTS[13].expand_as(seen)
    t = torch.full((len(seen), 1), 0.3, dtype=torch.float64)
    bound, hybrid = (gridded("d3pm", steps, auxiliary=a) for a in (0.0, 0.25))
    hidden = network.trunk(bound.view(seen, t))
    nats = bound.token_nelbo(network, hidden, seen, x0, t)
    assert torch.equal(bound.token_loss(network, hidden, seen, x0, t), nats)
    assert torch.equal(hybrid.token_nelbo(network, hidden, seen, x0, t), nats)
    ce = torch.where(seen == V, -hidden.log_softmax(-1).gather(-1, x0[..., None])[..., 0], 0.0)
    kl = ce / 3  # the chance of showing up in the step from 3 / 10 to 2 / 10
    assert torch.allclose(hybrid.token_loss(network, hidden, seen, x0, t), steps * (kl + 0.25 * ce), rtol=1e-12)


def test_registered_grids_have_a_linear_default() -> None:
    assert all(isinstance(gridded(name, 4).schedule, Linear) for name in GRIDDED)
    assert {c.family.name for c in CASES if getattr(c.family, "grid", 0)} == set(GRIDDED)
