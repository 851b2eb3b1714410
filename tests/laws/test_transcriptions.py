"""Formulas as the reference writes them, straight down the page, against the families' fast forms, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from redraft.families.ar import AR
from redraft.families.esolm import EsoLM
from redraft.families.mdlm import MDLM
from redraft.network.transformer import Transformer
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.types import Attention, Batch, View
from tests.laws.test_sampling import small_network
from tests.rounding import CLOSE

V, L, B = 6, 9, 5
KEY = Key.of(11)


@pytest.fixture(scope="module")
def network() -> Transformer:
    return small_network(V)


@pytest.fixture(scope="module")
def batch() -> Batch:
    tokens = torch.randint(0, V, (B, L), generator=torch.Generator().manual_seed(0))
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(B))


def logits(network: Transformer, view: View) -> Tensor:
    return network.output(network.trunk(view))


def test_ar_is_the_mean_of_next_token_cross_entropies(network: Transformer, batch: Batch) -> None:
    with torch.no_grad():
        total = torch.zeros(B, L, dtype=torch.float64)
        for row in range(B):
            for place in range(L):
                seen = torch.tensor([[V, *batch.tokens[row, :place].tolist()]])
                out = logits(network, View(seen, torch.arange(place + 1)[None], Attention.CAUSAL))[0, -1]
                total[row, place] = -out.log_softmax(-1)[batch.tokens[row, place]]
        assert torch.allclose(AR(V).nelbo(network, batch, key=KEY).nats, total, **CLOSE)


@pytest.mark.parametrize("objective", ["low_variance", "nelbo"])
def test_mdlm_is_masked_cross_entropy_with_its_weight(objective: str, network: Transformer, batch: Batch) -> None:
    """a'_t / (1 - a_t) log p(x) [z = m]; low variance: weight 1. [MASK] is never predicted: the head has no row."""
    family = MDLM(V, objective)
    t = counter_rng.times(KEY.fold_in("time"), batch.index)
    u = counter_rng.uniform(KEY.fold_in("corrupt"), batch.index[:, None], torch.arange(L))
    with torch.no_grad():
        for loss, weighted in (
            (family.loss(network, batch, key=KEY, progress=0.0), objective == "nelbo"),
            (family.nelbo(network, batch, key=KEY), True),
        ):
            for row in range(B):
                alpha = 1 - t[row]
                z = torch.where(u[row] < alpha, batch.tokens[row], V)[None]
                log_p = logits(network, View(z, torch.arange(L)[None])).log_softmax(-1)[0]
                weight = 1 / (1 - alpha) if weighted else 1.0
                expected = torch.tensor(
                    [-weight * log_p[i, x] if z[0, i] == V else 0.0 for i, x in enumerate(batch.tokens[row])],
                    dtype=torch.float64,
                )
                assert torch.allclose(loss.nats[row], expected, **CLOSE)


def test_absorbing_posterior_is_the_published_one() -> None:
    """z != m stays; z = m becomes v with (a_s - a_t)/(1 - a_t) p_v and stays m with (1 - a_s)/(1 - a_t)."""
    family, p = MDLM(V), torch.rand(1, 1, V, dtype=torch.float64).softmax(-1)
    t, s = torch.tensor([[0.8]], dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64)
    a_t, a_s = 1 - 0.8, 1 - 0.3
    masked = family.posterior(p, torch.tensor([[V]]), t, s)[0, 0]
    assert torch.allclose(masked[:V], (a_s - a_t) / (1 - a_t) * p[0, 0])
    assert masked[V].item() == pytest.approx((1 - a_s) / (1 - a_t))
    assert family.posterior(p, torch.tensor([[2]]), t, s)[0, 0].tolist() == [0, 0, 1, 0, 0, 0, 0]


def clean_first(z: Tensor, ramp: bool, generator: torch.Generator) -> Tensor:
    """key = [z = m] + offset, offset random, or a ramp for masks that stay left to right."""
    offset = torch.rand(z.shape, generator=generator) * 0.9
    if ramp:
        offset = torch.where(z == V, torch.linspace(0, 0.9, z.shape[1]), offset)
    return ((z == V).float() + offset).argsort(1)


def test_esolm_sequential_phase_is_the_two_stream_pass(network: Transformer, batch: Batch) -> None:
    """2L x 2L on [z; x]: z_i sees itself and x_j, j < i; x_i sees x_j, j <= i; the first L rows are read.

    Ours drops the rows of clean z, which nobody attends to and which carry no loss.
    """
    generator = torch.Generator().manual_seed(3)
    z0 = batch.tokens.masked_fill(torch.rand(B, L, generator=generator) < 0.6, V)
    order = clean_first(z0, True, generator)
    eye, upto = torch.eye(L, dtype=torch.bool), torch.ones(L, L, dtype=torch.bool).tril()
    pattern = torch.cat([torch.cat([eye, upto.tril(-1)], 1), torch.cat([torch.zeros_like(eye), upto], 1)])[None]
    z, x = z0.gather(1, order), batch.tokens.gather(1, order)
    with torch.no_grad():
        view = View(torch.cat([z, x], 1), torch.cat([order, order], 1), pattern)
        log_p = logits(network, view)[:, :L].log_softmax(-1)
        nats = torch.where(z == V, -log_p.gather(-1, x[..., None])[..., 0], 0.0)
        ours = EsoLM(V, 0.4).sequential_nats(network, z0, batch.tokens, order)
    assert torch.allclose(ours.gather(1, order), nats, **CLOSE)
    assert torch.allclose(log_p.exp().sum(-1), torch.ones((), dtype=torch.float64))  # what the official code lost


def test_esolm_diffusion_phase_is_causal_in_sorted_order(network: Transformer, batch: Batch) -> None:
    """Variant B: tokens and their places sorted together, plain causal attention, loss on masks."""
    generator = torch.Generator().manual_seed(4)
    zt = batch.tokens.masked_fill(torch.rand(B, L, generator=generator) < 0.5, V)
    order = clean_first(zt, False, generator)
    expected = torch.zeros(B, L, dtype=torch.float64)
    with torch.no_grad():
        for row in range(B):
            for rank in range(L):
                place = int(order[row, rank])
                if zt[row, place] == V:
                    seen = order[row, : rank + 1]
                    view = View(zt[row, seen][None], seen[None], Attention.CAUSAL)
                    log_p = logits(network, view)[0, -1].log_softmax(-1)
                    expected[row, place] = -log_p[batch.tokens[row, place]]
        ours = EsoLM(V, 1.0).diffusion_nats(network, zt, batch.tokens, order)
    assert torch.allclose(ours, expected, **CLOSE)


def test_esolm_without_diffusion_is_an_exact_left_to_right_likelihood(network: Transformer, batch: Batch) -> None:
    """alpha_0 = 0: the chain rule with masks as queries; no randomness is left."""
    with torch.no_grad():
        one, other = (EsoLM(V, 0.0).nelbo(network, batch, key=Key.of(seed)).nats for seed in (0, 1))
        assert torch.allclose(one, other, **CLOSE)
        total = torch.zeros(B, dtype=torch.float64)
        for place in range(L):
            seen = torch.cat([batch.tokens[:, :place], torch.full((B, 1), V)], 1)
            view = View(seen, torch.arange(place + 1)[None], Attention.CAUSAL)
            log_p = logits(network, view)[:, -1].log_softmax(-1)
            total -= log_p.gather(1, batch.tokens[:, place, None])[:, 0]
    assert torch.allclose(one.sum(1), total, **CLOSE)


def test_esolm_loss_of_both_phases_averages_to_the_sum_of_their_means(network: Transformer, batch: Batch) -> None:
    """Even samples pay for diffusion, odd ones for the rest, each twice: the mean over many equals L_diff + L_seq."""
    rows = 4000
    tokens = batch.tokens.repeat(rows // B, 1)
    many = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(rows))
    family = EsoLM(V, 0.5, "nelbo")
    with torch.no_grad():
        split = family.loss(network, many, key=KEY, progress=0.0).nats.sum(1).double()
        whole = family.nelbo(network, many, key=KEY).nats.sum(1).double()
    error = (split.var() / rows + whole.var() / rows).sqrt()
    assert abs(float(split.mean() - whole.mean())) < 5 * float(error)
