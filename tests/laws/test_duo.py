"""Duo's training: the curriculum is the bound as tau falls, soft tokens are what they mix, the student learns the teacher."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from redraft.errors import UserError
from redraft.families.base import TeacherStudent, build
from redraft.families.duo import Duo, uniform_nats
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.noise.gaussian_map import race
from redraft.types import Batch, SoftEmbedding
from tests.rounding import CLOSE, in_float64
from tests.world import batch_of

KEY = Key.of(5)
IDS = 11


def network(seed: int = 0) -> Transformer:
    made = in_float64(initialised(Shape("dit", 2, 2, 16, 64, IDS, 8), seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def duo(**options: object) -> Duo:
    made = build("duo", {"objective": "curriculum", **options}, IDS)
    assert isinstance(made, Duo)
    return made


def rows(count: int = 6, length: int = 9) -> Batch:
    return batch_of(torch.randint(0, IDS, (count, length), generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("sparse", [True, False])
def test_a_mixture_of_one_token_is_that_token(sparse: bool) -> None:
    net, batch = network(), rows()
    view = duo().noisy_view(batch.tokens, torch.full((6, 1), 0.5))
    one = torch.nn.functional.one_hot(batch.tokens, IDS).double()
    every = torch.arange(IDS).expand(*batch.tokens.shape, IDS)
    soft = SoftEmbedding(one[..., : IDS // 2 + 6], every[..., : IDS // 2 + 6]) if sparse else SoftEmbedding(one, None)
    assert torch.allclose(net.trunk(replace(view, soft=soft)), net.trunk(view), **CLOSE)


def test_sparse_and_dense_mixtures_agree_with_gradients() -> None:
    net, batch = network(), rows()
    view = duo().noisy_view(batch.tokens, torch.full((6, 1), 0.5))
    weights = torch.rand(6, 9, 3, dtype=torch.float64)
    ids = torch.rand(6, 9, IDS).argsort(-1)[..., :3]
    dense = torch.zeros(6, 9, IDS, dtype=torch.float64).scatter(-1, ids, weights)
    grads = []
    for soft in (SoftEmbedding(weights, ids), SoftEmbedding(dense, None)):
        net.zero_grad()
        net.trunk(replace(view, soft=soft)).square().sum().backward()
        assert net.embedding.grad is not None
        grads.append(net.embedding.grad.clone())
    assert torch.allclose(grads[0], grads[1], **CLOSE)


@pytest.mark.parametrize("top_k", [0, 1, 3, IDS - 1])
def test_curriculum_is_the_bridges_bound_as_the_temperature_falls(top_k: int) -> None:
    """At a vanishing tau the network is shown the argmax itself: the plain integrand at (z_t, alpha_t), token by token."""
    family, net, batch = duo(top_k=top_k, tau=1e-9, tau_end=1e-9), network(), rows()
    with torch.no_grad():
        paid = family.loss(net, batch, key=KEY, progress=0.0).nats
        t = counter_rng.times(KEY.fold_in("time"), batch.index)[:, None]
        z, _ = family._tempered(batch, family.bridge.gamma(t), 1e-9, KEY)
        alpha, dalpha = family.bridge(t)
        logits = net.head(net.trunk(family.noisy_view(z, alpha)))
        plain = uniform_nats(logits, z, batch.tokens, alpha.expand_as(z), dalpha.expand_as(z))
    assert torch.allclose(paid, plain, **CLOSE)


def test_curriculum_ends() -> None:
    family, plain, net, batch = duo(curriculum_end=0.3), build("duo", {}, IDS), network(), rows()
    for progress, same in ((0.0, False), (0.29, False), (0.3, True), (1.0, True)):
        pair = [f.loss(net, batch, key=KEY, progress=progress).nats for f in (family, plain)]
        assert torch.equal(*pair) == same


def test_temperature_follows_a_power_law() -> None:
    seen = []

    class Spy(Duo):  # type: ignore[misc]
        def _tempered(self, batch, gamma, tau, key):  # type: ignore[no-untyped-def]
            seen.append(tau)
            return super()._tempered(batch, gamma, tau, key)

    family = Spy(IDS, objective="curriculum", tau=1e-1, tau_end=1e-3, curriculum_end=0.5)
    for progress in (0.0, 0.25, 0.499999):
        family.loss(network(), rows(), key=KEY, progress=progress)
    assert seen == pytest.approx([1e-1, 1e-2, 1e-3], rel=1e-4)


@pytest.mark.parametrize("objective", ["curriculum", "distillation"])
@pytest.mark.parametrize("top_k", [0, 3])
def test_unscored_tokens_are_shown_as_they_are_and_cost_nothing(objective: str, top_k: int) -> None:
    family, net, batch = duo(objective=objective, top_k=top_k), network(), rows()
    scored = torch.arange(9).expand(6, 9) > 3
    part = Batch(batch.tokens, scored, batch.index)
    shown = TeacherStudent(net, network(1)) if objective == "distillation" else net
    assert (family.loss(shown, part, key=KEY, progress=0.0).nats[:, :4] == 0).all()
    t = counter_rng.times(KEY.fold_in("time"), batch.index)[:, None]
    z, soft = family._tempered(part, family.bridge.gamma(t), 1e-1, KEY)
    clean = soft.weights.gather(-1, batch.tokens[..., None])[..., 0] if soft.ids is None else soft.weights[..., 0]
    assert torch.equal(z[:, :4], batch.tokens[:, :4]) and (clean[:, :4] == 1).all()


@pytest.mark.parametrize("kl", ["backward", "forward"])
def test_distillation_pays_the_divergence_along_one_path(kl: str) -> None:
    """By definition: two noisings of the same race, two predictions, and a sum over V."""
    family, student, teacher, batch = duo(objective="distillation", kl=kl), network(0), network(1), rows()
    paid = family.loss(TeacherStudent(student, teacher), batch, key=KEY, progress=0.41).nats
    stride = 4 / 512  # the third of five rounds
    t = (counter_rng.times(KEY.fold_in("time"), batch.index)[:, None] + stride).clamp(max=1)
    run = race(batch.tokens, IDS, 1, counter_rng.field(KEY.fold_in("race"), batch.index, 9))
    log_p = []
    for net, at in ((student, t), (teacher, t - stride)):
        z = run.argmax(batch.tokens, family.bridge.gamma(at))
        log_p.append(net.head(net.trunk(family.noisy_view(z, family.bridge(at)[0]))).log_softmax(-1))
    p, q = log_p if kl == "backward" else log_p[::-1]
    assert torch.allclose(paid, (p.exp() * (p - q)).sum(-1), **CLOSE)


def test_distillation_teaches_the_student_alone() -> None:
    family, student, teacher = duo(objective="distillation"), network(0), network(1)
    family.loss(TeacherStudent(student, teacher), rows(), key=KEY, progress=0.0).mean().backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_student_that_is_its_teacher_pays_less_as_the_stride_shrinks() -> None:
    family, net, batch = duo(objective="distillation", stride=2**20), network(), rows(64)
    with torch.no_grad():
        paid = float(family.loss(TeacherStudent(net, net), batch, key=KEY, progress=0.0).mean())
    assert 0 <= paid < 1e-3


def test_evaluation_does_not_depend_on_how_a_model_was_trained() -> None:
    batch, net = rows(), network()
    bounds = [build("duo", {"objective": o}, IDS).nelbo(net, batch, key=KEY).nats for o in ("nelbo", "curriculum")]
    assert torch.equal(*bounds)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "soft"},
        {"kl": "sideways"},
        {"tau": 0.0},
        {"top_k": -1},
        {"curriculum_end": 1.5},
        {"rounds": 12},
        {"gamma_low": 3.0, "gamma_high": -3.0},
        {"degree": -1},
    ],
    ids=str,
)
def test_impossible_settings_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        duo(**options)


def test_a_small_vocabulary_has_no_more_rivals_than_ids() -> None:
    family = build("duo", {"objective": "curriculum", "top_k": 30}, IDS)
    assert isinstance(family, Duo)
    _, soft = family._tempered(rows(), torch.zeros(6, 1, dtype=torch.float64), 1.0, KEY)
    assert soft.ids is not None and (soft.ids.sort(-1).values == torch.arange(IDS)).all()
