"""Law 1: with the exact denoiser the expected bound is the entropy of the data; with any other it is above the NLL."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from redraft.families.ar import AR
from redraft.families.base import Absorbing, DiffusionFamily, Family
from redraft.families.bd3lm import BD3LM
from redraft.families.esolm import EsoLM
from redraft.noise.counter_rng import Key
from redraft.noise.schedules import Linear
from redraft.types import Network
from tests.laws.cases import CASES, HYBRID, WITH_CLOCK, Case
from tests.world import ENTROPY, TEXTS, Exact, L, Oracle, P, V, batch_of, quadrature, states

KEY = Key.of(0)
pytestmark = pytest.mark.filterwarnings("error")


def expected_diffusion_nelbo(family: DiffusionFamily, network: Network, nodes: int) -> float:
    """Sum over texts and corrupted states, quadrature over time, of the family's own token_nelbo, plus the prior term."""
    ids = family.marginal(TEXTS[:1], torch.tensor([[0.5]], dtype=torch.float64)).shape[-1]
    seen, total = states(ids), L * family.prior_nats()
    x0, p = TEXTS.repeat_interleave(len(seen), 0), P.repeat_interleave(len(seen), 0)
    xt = seen.repeat(len(TEXTS), 1)
    for t, weight in times(family, nodes):
        at = torch.full((len(xt), 1), t, dtype=torch.float64)
        hidden = network.trunk(family.view(seen, at[: len(seen)])).repeat(len(TEXTS), 1, 1)
        reached = p * family.marginal(x0, at).gather(-1, xt[..., None])[..., 0].prod(-1)
        nats = family.token_nelbo(network, hidden, xt, x0, at).sum(-1)
        total += weight * float((reached * nats.where(reached > 0, 0.0)).sum())
    return total


def times(family: DiffusionFamily, nodes: int) -> list[tuple[float, float]]:
    """Times and weights: a grid's own, all alike; else Gauss-Legendre in u with t = u^3 (10 - 15 u + 6 u^2), which keeps a
    polynomial one and is flat at t = 0 and 1, where noise may come and go as a square root."""
    if family.grid:
        return [(i / family.grid, 1 / family.grid) for i in range(1, family.grid + 1)]
    rule = quadrature(nodes)
    return [(u**3 * (10 - 15 * u + 6 * u * u), weight * 30 * (u * (1 - u)) ** 2) for u, weight in rule]


def expected_esolm_nelbo(family: EsoLM, network: Network, nodes: int = 8) -> float:
    total, seen = 0.0, states(V + 1)

    def masked_first(z: Tensor) -> Tensor:
        return ((z == V).long() * L + torch.arange(L)).argsort(1)

    for text, p in zip(TEXTS, P.tolist(), strict=True):
        x0 = text.expand_as(seen)
        visible = seen == x0

        def chance(alpha: float, visible: Tensor = visible) -> Tensor:
            kept, hidden = torch.tensor([alpha, 1 - alpha], dtype=torch.float64)
            return torch.where(visible, kept, (seen == V) * hidden).prod(-1)

        if family.alpha_0 < 1:
            q = chance(family.alpha_0)
            keep = q > 0
            nats = family.sequential_nats(network, seen[keep], x0[keep], masked_first(seen[keep])).sum(-1)
            total += p * float((q[keep] * nats).sum())
        for t, weight in quadrature(nodes) if family.alpha_0 > 0 else ():
            alpha = family.alpha_0 * (1 - t)
            q = chance(alpha)
            keep = q > 0
            nats = family.diffusion_nats(network, seen[keep], x0[keep], masked_first(seen[keep])).sum(-1)
            total += weight * p * family.alpha_0 / (1 - alpha) * float((q[keep] * nats).sum())
    return total


def expected_bd3lm_nelbo(family: BD3LM, network: Network, nodes: int = 8) -> float:
    """The definition: each token hidden with probability t, weighed by 1/t. Blocks do not see each other's masks, so one
    enumeration of the hidden serves all of them."""
    total = 0.0
    for hidden in (states(2) == 1)[1:]:
        nats = family.hidden_nats(network, TEXTS, hidden.expand_as(TEXTS)).sum(1)
        for t, weight in quadrature(nodes):
            total += weight / t * math.prod(t if h else 1 - t for h in hidden.tolist()) * float((P * nats).sum())
    return total


@functools.cache
def tight_nelbo(case: Case, nodes: int) -> float:
    """Of the exact denoiser."""
    return expected_nelbo(case, case.oracle, nodes)


def expected_nelbo(case: Case, network: Network, nodes: int) -> float:
    if isinstance(case.family, AR):
        return float((P * case.family.nelbo(network, batch_of(TEXTS), key=KEY).nats.sum(1)).sum())
    if isinstance(case.family, EsoLM):
        return expected_esolm_nelbo(case.family, network)
    if isinstance(case.family, BD3LM):
        return expected_bd3lm_nelbo(case.family, network)
    assert isinstance(case.family, DiffusionFamily)
    return expected_diffusion_nelbo(case.family, network, nodes)


def is_polynomial(family: Family) -> bool:
    """Whether the bound's integrand is one in t, so that the quadrature is exact."""
    if not isinstance(family, DiffusionFamily):
        return True
    return isinstance(family, Absorbing) and isinstance(family.schedule, Linear) and not family.grid


def has_steps(case: Case) -> bool:
    """Whether the bound is that of a chain of T steps: above the entropy, and a matter for test_grid."""
    return isinstance(case.family, DiffusionFamily) and case.family.grid > 0


POLYNOMIAL = [c for c in CASES if is_polynomial(c.family)]
BENDING = [c for c in [*CASES, HYBRID] if c not in POLYNOMIAL and not has_steps(c)]


@pytest.mark.parametrize("case", POLYNOMIAL, ids=repr)
def test_bound_is_tight_with_the_exact_denoiser(case: Case) -> None:
    """The quadrature is exact; or the family's bound is not an integral over a shared time."""
    assert expected_nelbo(case, case.oracle, 8) == pytest.approx(ENTROPY, abs=1e-9)


@pytest.mark.parametrize("case", BENDING, ids=repr)
def test_bound_is_tight_to_quadrature_error(case: Case) -> None:
    """Uniform noise, and schedules that bend: the integrand has a log t at t = 0, which slows Gauss-Legendre down.

    The excess of `log_linear` over the entropy is KL(q(x_1) | prior), at most eps^2 V per token here: below 1e-5.
    """
    coarse, fine = (abs(tight_nelbo(case, n) - ENTROPY) for n in (25, 100))
    assert fine < 1e-4
    assert fine < coarse / 4 or fine < 1e-5


class Wrong(Oracle):
    """A denoiser that is wrong in a fixed way: the exact logits, bent and shifted."""

    def __init__(self, oracle: Oracle):
        self.oracle = oracle

    def trunk(self, view):  # type: ignore[no-untyped-def]
        bend = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64)
        return (0.7 * self.oracle.trunk(view).clamp(min=-20) + bend).log_softmax(-1)


@pytest.mark.parametrize("case", [*CASES, HYBRID], ids=repr)
def test_bound_of_a_wrong_denoiser_is_above_the_entropy(case: Case) -> None:
    assert expected_nelbo(case, Wrong(case.oracle), 50 if case in BENDING else 8) > ENTROPY + 0.01


def test_any_order_likelihood_is_below_the_mdlm_bound() -> None:
    """The bound averages -log p over orders (Jensen): above the NLL of the order-averaged model, text by text."""
    network, total = Wrong(Exact()), torch.zeros(len(TEXTS), dtype=torch.float64)
    from itertools import permutations

    from redraft.families.base import build

    family = build("mdlm", {}, V)
    for order in permutations(range(L)):
        log_p, seen = torch.zeros(len(TEXTS), dtype=torch.float64), torch.full_like(TEXTS, V)
        for place in order:
            rows = family.log_p(network, seen, None, None)[:, place]
            log_p += rows.gather(1, TEXTS[:, place, None])[:, 0]
            seen = seen.clone()
            seen[:, place] = TEXTS[:, place]
        total += log_p.exp() / math.factorial(L)
    nll = -(P * total.log()).sum()
    case = next(c for c in CASES if c.family.name == "mdlm")
    assert float(nll) < expected_nelbo(case, network, 8)


@pytest.mark.parametrize("case", [*CASES, HYBRID], ids=repr)
def test_nelbo_draws_average_to_the_expected_bound(case: Case) -> None:
    """The method that users call, with its counters: 2^14 draws, within 5 standard errors of the enumerated value."""
    draws = 1 if case.family.exact else 2**14
    text = torch.multinomial(P, draws, replacement=True, generator=torch.Generator().manual_seed(1))
    tokens = TEXTS if case.family.exact else TEXTS[text]
    nats = case.family.nelbo(case.oracle, batch_of(tokens), key=KEY).nats.sum(1)
    if case.family.exact:
        assert float((P * nats).sum()) == pytest.approx(ENTROPY, abs=1e-9)
    else:
        truth = tight_nelbo(case, 100 if case in BENDING else 8)
        assert abs(float(nats.mean()) - truth) < 5 * float(nats.std()) / math.sqrt(draws) + 1e-4


@pytest.mark.parametrize("case", [c for c in WITH_CLOCK if c.family.name in ("mdlm", "duo")], ids=repr)
def test_unscored_tokens_are_neither_corrupted_nor_paid_for(case: Case) -> None:
    tokens = TEXTS.repeat(8, 1)
    batch = batch_of(tokens)
    scored = torch.arange(L).expand_as(tokens) > 0
    loss = case.family.nelbo(case.oracle, type(batch)(tokens, scored, batch.index), key=KEY)
    assert (loss.nats[:, 0] == 0).all() and (loss.nats[:, 1:] != 0).any()
