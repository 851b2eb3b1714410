"""The fused cross-entropy is the definition, value and gradients, and never holds all logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from redraft.families.duo import uniform_nats
from redraft.families.mask_uniform import weighed
from redraft.families.sedd import weighed_entropy
from redraft.network import head
from redraft.network.head import FEW_ROWS, _cross_entropy, _cross_entropy_fused, by_rule, cross_entropy, logits, summed

V, D = 50, 8
CHARGES = ("alike", "zero", "any", "some rows not scored")


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows a chunk, so that 8 rows end in a short one."""
    monkeypatch.setattr(head, "CHUNK_LOGITS", {"cpu": 3 * V + 1})


def case(
    rows: int, bias: bool, dtype: torch.dtype, weights: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).to(weights).requires_grad_()
    b = torch.randn(V, generator=generator).to(weights).requires_grad_() if bias else None
    return x, weight, b, torch.randint(0, V, (rows,), generator=generator)


def charge(kind: str, rows: int) -> Tensor:
    if kind in ("alike", "zero"):
        return torch.full((rows,), 0.37 if kind == "alike" else 0.0)
    g = torch.randn(rows, generator=torch.Generator().manual_seed(1))
    return g if kind == "any" else torch.where(torch.arange(rows) % 3 == 0, 0.0, 0.37)


def definition(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight, bias), targets, reduction="none")


def in_float64(part: Tensor | None) -> Tensor | None:
    return None if part is None else part.detach().double().requires_grad_()


def gradients(nats: Tensor, g: Tensor, parts: Sequence[Tensor | None], **options: Any) -> list[Tensor]:
    return list(torch.autograd.grad(nats, [p for p in parts if p is not None], g.to(nats.dtype), **options))


@pytest.mark.parametrize("kind", CHARGES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 8])
def test_value_and_gradients_are_the_definitions(rows: int, bias: bool, kind: str) -> None:
    """In float64, for any upstream gradient. 1e-12: some thousand roundings of 1e-16 at numbers of order 10."""
    *parts, targets = case(rows, bias, torch.float64, torch.float64)
    fast, slow = cross_entropy(*parts, targets), definition(*parts, targets)
    assert torch.allclose(fast, slow, rtol=1e-12, atol=1e-12)
    g = charge(kind, rows)
    for ours, theirs in zip(gradients(fast, g, parts), gradients(slow, g, parts), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("told", CHARGES)
@pytest.mark.parametrize("kind", CHARGES)
@pytest.mark.parametrize("bias", [False, True])
def test_charges_that_are_told_beforehand_are_the_definitions_too(bias: bool, kind: str, told: str) -> None:
    """Whatever is charged on top of them afterwards."""
    *parts, targets = case(8, bias, torch.float64, torch.float64)
    charges = charge(told, 8).flip(0)
    fast, slow = cross_entropy(*parts, targets, charges), definition(*parts, targets) * charges
    with torch.no_grad():
        assert torch.equal(fast, cross_entropy(*parts, targets, charges))
    assert torch.allclose(fast, slow, rtol=1e-12, atol=1e-12)
    g = charge(kind, 8)
    for ours, theirs in zip(gradients(fast, g, parts), gradients(slow, g, parts), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", CHARGES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_stays_within_its_bound(dtype: torch.dtype, bias: bool, kind: str) -> None:
    """Against float64, from the same inputs; weights are float32, as in training.

    u is the unit roundoff of `dtype`, u32 of float32, in which products are summed. A logit is off by at most
    delta = (2 u + (D + 2) u32) (|W| |x| + |b|): weight and result are rounded to `dtype`, D products are summed. nats and
    logsumexp are 1-Lipschitz in the logits: 2 delta, and some u32 of the value. p is off by a factor e^(2 delta) at most,
    so an error e = p - onehot by (e^(2 delta) - 1) p, then it is rounded to `dtype`, as are the weight, the product and
    (for rows) the scaled result: 4 u |e|, and n u32 for a sum of n terms.
    """
    x, weight, b, targets = case(8, bias, dtype, torch.float32)
    exact = [in_float64(part) for part in (x, weight, b)]
    fast, slow, g = cross_entropy(x, weight, b, targets), definition(*exact, targets), charge(kind, 8)

    u, u32 = torch.finfo(dtype).eps / 2, torch.finfo(torch.float32).eps / 2
    x64, w64, b64 = (None if part is None else part.detach().abs() for part in exact)
    size = x64 @ w64.T + (0 if b64 is None else b64)
    delta = float(((2 * u + (D + 2) * u32) * size).max())
    assert fast.dtype == torch.float32
    assert ((fast - slow).abs() <= 2 * delta + 8 * u32 * (1 + slow)).all()

    p = F.linear(*exact).softmax(-1).detach()
    e = (p - F.one_hot(targets, V)).abs()
    off = torch.expm1(torch.tensor(2 * delta)) * p + (4 * u + (V + 8) * u32) * e
    charged = g.abs().double()[:, None] * off
    bounds = [charged @ w64 * (1 + 4 * u), charged.T @ x64 * (1 + 4 * u), charged.sum(0) * (1 + 4 * u)]
    ours, theirs = gradients(fast, g, (x, weight, b)), gradients(slow, g, exact)
    for mine, true, bound in zip(ours, theirs, bounds):
        assert ((mine - true).abs() <= bound + 1e-30).all()


@pytest.mark.parametrize("bias", [False, True])
def test_no_rows_cost_nothing(bias: bool) -> None:
    """A row of text in which nothing was hidden: MDLM's cross-entropy over no rows."""
    *parts, targets = case(0, bias, torch.float32, torch.float32)
    nats = cross_entropy(*parts, targets)
    assert nats.shape == (0,)
    assert all(not g.any() for g in gradients(nats, torch.zeros(0), parts))


@pytest.mark.parametrize("kind", CHARGES)
def test_differentiating_twice_gives_the_same(kind: str) -> None:
    *parts, targets = case(8, True, torch.float32, torch.float32)
    nats, g = cross_entropy(*parts, targets), charge(kind, 8)
    first = gradients(nats, g, parts, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(nats, g, parts), strict=True))


def test_value_does_not_depend_on_gradients_being_wanted() -> None:
    *parts, targets = case(8, True, torch.float32, torch.float32)
    with torch.no_grad():
        quiet = cross_entropy(*parts, targets)
    assert torch.equal(quiet, cross_entropy(*parts, targets))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 2, FEW_ROWS, FEW_ROWS + 1])
def test_logits_of_few_rows_are_those_of_many(rows: int, bias: bool) -> None:
    x, weight, b, _ = case(rows, bias, torch.float64, torch.float64)
    assert torch.allclose(logits(x, weight, b), F.linear(x, weight, b), rtol=1e-12, atol=1e-12)


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else [out]:
            self.numbers = max(self.numbers, made.numel() if isinstance(made, Tensor) else 0)
        return out


@pytest.mark.parametrize("kind", ["alike", "any"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_never_whole(dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward: no tensor is larger than a chunk's logits or the weights."""
    monkeypatch.setattr(head, "CHUNK_LOGITS", {"cpu": 10 * V})
    rows = 20 * D
    x, weight, _, targets = case(rows, False, dtype, torch.float32)
    with Largest() as largest:
        gradients(cross_entropy(x, weight, None, targets), charge(kind, rows), (x, weight))
    assert rows * V > 10 * V >= V * D
    assert max(V * D, rows * D) <= largest.numbers < rows * V / 4


def test_rows_charged_alike_or_beforehand_cost_three_products_and_others_five() -> None:
    x, weight, _, targets = case(8, False, torch.float32, torch.float32)
    for kind, told, products in (("alike", None, 3), ("alike", "any", 3), ("any", None, 5)):
        charges = None if told is None else charge(told, 8)
        with FlopCounterMode(display=False) as counter:
            gradients(cross_entropy(x, weight, None, targets, charges), charge(kind, 8), (x, weight))
        assert counter.get_total_flops() == products * 2 * 8 * D * V


def _uniform(rows: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    z, x = (torch.randint(0, V, (rows,), generator=generator) for _ in range(2))
    alpha = 0.05 + 0.9 * torch.rand(rows, generator=generator, dtype=torch.float64)
    return uniform_nats, [z, x, alpha, -torch.ones_like(alpha)]


def _divergence(rows: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    _, (z, x, alpha, _) = _uniform(rows)
    return weighed, [z, x, alpha, (1 - alpha) / V, 1 + alpha]


def _entropy(rows: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    _, (_, x, alpha, _) = _uniform(rows)
    return weighed_entropy, [x, alpha]


@pytest.mark.parametrize("kind", CHARGES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rule", [_uniform, _divergence, _entropy])
def test_losses_by_rule_have_the_gradients_of_their_definitions(
    rule: Callable[[int], tuple[Callable[..., Tensor], list[Tensor]]], bias: bool, kind: str
) -> None:
    """In float64, a few rows at a time, for any upstream gradient: 1e-11 of the largest, some thousand roundings of 1e-16 at
    terms that are up to a hundred times their sum."""
    *parts, _ = case(8, bias, torch.float64, torch.float64)
    function, others = rule(8)
    fast, slow = by_rule(function, *parts, *others), function(F.linear(*parts), *others)
    assert torch.allclose(fast, slow, rtol=1e-11, atol=1e-11)
    g = charge(kind, 8).to(fast.dtype)
    for ours, theirs in zip(gradients(fast, g, parts), gradients(slow, g, parts), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-11 * float(theirs.abs().max()))
    with torch.no_grad():
        assert torch.equal(by_rule(function, *parts, *others), fast)


def test_losses_by_rule_cost_three_products() -> None:
    *parts, _ = case(8, False, torch.float32, torch.float32)
    function, others = _uniform(8)
    with FlopCounterMode(display=False) as counter, summed():
        gradients(by_rule(function, *parts, *others), charge("alike", 8), parts[:2])
    assert counter.get_total_flops() == 3 * 2 * 8 * D * V


def test_under_the_promise_of_a_sum_no_number_is_read() -> None:
    """A GPU is then not waited for. Without the promise one number is."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func.overloadpacket.__name__ == "_local_scalar_dense"
            return func(*args, **(kwargs or {}))

    *parts, targets = case(8, True, torch.float32, torch.float32)
    for promise, reads in ((True, 0), (False, 1)):
        with summed(promise):
            nats = cross_entropy(*parts, targets)
        with Reads() as seen:
            gradients(nats, charge("alike", 8), parts)
        assert seen.count == reads


@pytest.mark.parametrize("told", [None, "any"])
def test_what_a_gpu_fuses_is_what_a_cpu_does_step_by_step(told: str | None) -> None:
    *parts, targets = case(8, True, torch.float64, torch.float64)
    low, charges = F.linear(*parts).detach(), () if told is None else (charge(told, 8).double(),)
    for fused, plain in zip(_cross_entropy_fused(low, targets, *charges), _cross_entropy(low, targets, *charges)):
        assert torch.allclose(fused, plain, rtol=1e-12, atol=1e-12)
