"""The option `time`: every family that draws times trains at those of the density, and its bound keeps its expectation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import DiffusionFamily, Family, build
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.noise.time_density import Bell, TimeOption
from redraft.registry import FAMILIES
from tests.laws.test_bound import Wrong, expected_diffusion_nelbo
from tests.laws.test_sampling import small_network
from tests.world import TEXTS, Exact, L, P, V, batch_of, quadrature, states

KEY = Key.of(4)
BELL = {"time": "bell", "time_mean": 0.4, "time_width": 0.3}
WEIGHTED: list[tuple[str, dict[str, Any]]] = [
    ("mdlm", {"objective": "nelbo"}),
    ("mdlm", {"objective": "nelbo", "grid": 8}),
    ("duo", {}),
    ("duo", {"objective": "curriculum"}),
    ("esolm", {"objective": "nelbo"}),
    ("sedd", {}),
    ("d3pm", {}),
    ("gidd", {"weights": "nelbo"}),
    ("xdlm", {}),
    ("bd3lm", {}),
]
PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("mdlm", {}),
    ("esolm", {}),
    ("gidd", {}),
    ("bd3lm", {"objective": "low_variance", "clip_low": 0.2}),
]


def test_every_family_with_times_takes_the_option() -> None:
    timed = {name for name in FAMILIES if isinstance(build(name, {}, V), TimeOption)}
    assert timed == {name for name, _ in WEIGHTED} == set(FAMILIES) - {"ar"}
    assert all(("time" in FAMILIES[name].options) == (name in timed) for name in FAMILIES)


@torch.no_grad()
def nats(family: Family, monkeypatch: pytest.MonkeyPatch, moved: bool) -> Tensor:
    """The loss of fixed noise; `moved`: with uniforms that are what the bell makes of them."""
    draw = counter_rng.times
    with monkeypatch.context() as patch:
        if moved:
            patch.setattr(counter_rng, "times", lambda *args: Bell(0.4, 0.3).times(draw(*args)))
        return family.loss(small_network(), batch_of(TEXTS), key=KEY, progress=0.0).nats.double()


@pytest.mark.parametrize(
    ("name", "options", "weighted"), [*((*case, True) for case in WEIGHTED), *((*case, False) for case in PLAIN)]
)
def test_a_loss_is_that_of_its_times_and_a_bound_is_weighted(
    name: str, options: dict[str, Any], weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sample by sample: the loss under the bell is that of uniform times moved to where the bell has them, times dt/du if it
    is a bound. So what the densities' own laws say of expectations holds for every family."""
    if name == "bd3lm":  # it draws a time for each block from one of each sample: with one block they are the same
        options = {**options, "block": L}
    if name == "gidd" and options:  # its bound has times of its own, u^3, unless it is told others
        monkeypatch.setattr(type(build(name, {}, V)), "bound_times", DiffusionFamily.bound_times)
    bell = nats(build(name, {**options, **BELL}, V), monkeypatch, moved=False)
    base = build(name, options, V)
    if name == "bd3lm":
        own = type(base).times
        moved = lambda self, batch, key: Bell(0.4, 0.3).times(own(self, batch, key))
        with monkeypatch.context() as patch:
            patch.setattr(type(base), "times", moved)
            plain = nats(base, monkeypatch, moved=False)
        u = own(base, batch_of(TEXTS), KEY)  # type: ignore[arg-type]
    else:
        plain = nats(base, monkeypatch, moved=True)
        u = counter_rng.times(KEY.fold_in("time"), torch.arange(len(TEXTS)))[:, None]
    weight = Bell(0.4, 0.3).weight(u) if weighted else 1.0
    assert torch.allclose(bell, plain * weight, rtol=1e-5, atol=1e-7) and float(bell.abs().sum()) > 0


@pytest.mark.parametrize("option", [{}, BELL], ids=["uniform", "bell"])
def test_expected_loss_is_the_bound_whatever_the_density(
    option: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MDLM's own `loss`, at every text and corrupted state, by quadrature over the uniforms: no draws at all."""
    family, network = build("mdlm", {"objective": "nelbo", **option}, V), Wrong(Exact())
    assert isinstance(family, DiffusionFamily)
    seen = states(V + 1)
    x0, xt = TEXTS.repeat_interleave(len(seen), 0), seen.repeat(len(TEXTS), 1)
    monkeypatch.setattr(type(family), "corrupt", lambda self, x, t, noise: xt)
    total = 0.0
    for node, weight in quadrature(60):
        monkeypatch.setattr(counter_rng, "times", lambda key, index, u=node: torch.full((len(index),), u).double())
        t = family.density.times(torch.full((len(x0), 1), node, dtype=torch.float64))
        reached = family.marginal(x0, t).gather(-1, xt[..., None])[..., 0].prod(-1)
        nats = family.loss(network, batch_of(x0), key=KEY, progress=0.0).nats.double().sum(1)
        chance = P.repeat_interleave(len(seen)) * reached
        total += weight * float((chance * nats.where(reached > 0, 0.0)).sum())
    assert total == pytest.approx(expected_diffusion_nelbo(family, network, 8), abs=1e-6)


@pytest.mark.parametrize("name", [name for name, entry in FAMILIES.items() if "time" in entry.options])
def test_what_is_reported_is_drawn_uniformly(name: str) -> None:
    with torch.no_grad():
        one, other = (
            build(name, option, V).nelbo(small_network(), batch_of(TEXTS), key=KEY).nats for option in ({}, BELL)
        )
    assert torch.equal(one, other)


def test_settings_of_time_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown time 'bel'\. Did you mean 'bell'"):
        build("mdlm", {"time": "bel"}, V)
    with pytest.raises(UserError, match=r"family.time_width must be in \[0.05, 10\], got 20"):
        build("esolm", {"time": "bell", "time_width": 20}, V)
    with pytest.raises(UserError, match="unknown option of family ar: 'time'"):
        build("ar", {"time": "bell"}, V)
    with pytest.raises(UserError, match=r"family\.time must be uniform in distillation"):
        build("duo", {"time": "bell", "objective": "distillation"}, V)
