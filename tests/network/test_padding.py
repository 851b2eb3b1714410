"""Padding is nothing: a row among longer ones is the row alone, and what its padding holds is never seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.families.base import Family, TeacherStudent, build
from redraft.network.init import initialised
from redraft.network.padding import Padded, reading, unpadded
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.noise.counter_rng import Key
from redraft.registry import FAMILIES
from redraft.types import Attention, Batch, Network, Pattern, TokenLoss, View
from tests.rounding import CLOSE, in_float64

V, LENGTHS = 11, (9, 4, 1, 6, 7, 2)
PROMPTS = (3, 1, 0, 5, 0, 1)  # tokens before the first that is scored
KEY = Key.of(3).fold_in("padding")
SHAPES = {
    "dit": Shape("dit", 2, 2, 16, 32, V, 8),
    "llama": Shape("llama", 2, 2, 16, 24, V),
    "grouped": Shape("llama", 2, 4, 16, 24, V, kv_heads=2, qk_norm=True),
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "mdlm": [{}, {"objective": "nelbo"}],
    "duo": [{}, {"objective": "curriculum", "tau": 0.3, "tau_end": 0.1}, {"objective": "distillation", "rounds": 2}],
    "esolm": [{"alpha_0": a, "variant": v} for v in "AB" for a in (0.0, 0.4, 1.0)],
    "bd3lm": [{"block": 1}, {"block": 4}],
}
CASES = [(name, options) for name in FAMILIES for options in OPTIONS.get(name, [{}])]
EVERY = pytest.mark.parametrize(("name", "options"), CASES, ids=str)


def network_of(shape: Shape, seed: int = 1) -> Transformer:
    """Random everywhere: at their first values adaLN and the output would hide what they multiply."""
    network, generator = in_float64(initialised(shape, 0)), torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return network


def company(fill: int = 0) -> Batch:
    """Rows of all LENGTHS, their padding `fill`."""
    tokens = torch.randint(0, V, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(5))
    place, lengths = torch.arange(max(LENGTHS)), torch.tensor(LENGTHS)
    real = place < lengths[:, None]
    scored = real & (place >= torch.tensor(PROMPTS)[:, None])
    return Batch(tokens.where(real, fill), scored, 40 + torch.arange(len(LENGTHS)), lengths)


def alone(batch: Batch) -> Iterator[Batch]:
    """Each row by itself, without its padding."""
    for row, length in enumerate(LENGTHS):
        one = slice(row, row + 1)
        yield Batch(batch.tokens[one, :length], batch.scored[one, :length], batch.index[one])


def taught(network: Network, family: Family, batch: Batch) -> Network:
    """What a trainer hands to the loss."""
    student = reading(network, batch)
    if getattr(family, "objective", "") != "distillation":
        return student
    return TeacherStudent(student, reading(network_of(SHAPES["dit"], seed=2), batch))


def both(network: Network, family: Family, batch: Batch) -> tuple[TokenLoss, TokenLoss]:
    loss = family.loss(taught(network, family, batch), batch, key=KEY, progress=0.2)
    return loss, family.nelbo(reading(network, batch), batch, key=KEY)


@EVERY
@pytest.mark.parametrize("block", SHAPES)
def test_a_row_alone_is_the_row_in_company(name: str, options: dict[str, Any], block: str) -> None:
    network, family, batch = network_of(SHAPES[block]), build(name, options, V), company()
    for together, *singles in zip(
        both(network, family, batch), *(both(network, family, one) for one in alone(batch)), strict=True
    ):
        for row, (single, length) in enumerate(zip(singles, LENGTHS, strict=True)):
            assert torch.allclose(together.nats[row, :length], single.nats[0], **CLOSE)
        assert not together.nats[~batch.scored].any()


@EVERY
def test_what_padding_holds_is_never_seen(name: str, options: dict[str, Any]) -> None:
    """Nor what it holds of the spare id. Gradients of the network included."""
    network, family = network_of(SHAPES["dit"]), build(name, options, V)
    found = []
    for fill in (0, V - 1, V):
        loss, nelbo = both(network, family, company(fill))
        gradients = torch.autograd.grad(loss.nats.sum(), list(network.parameters()), allow_unused=True)
        found.append([loss.nats, nelbo.nats, *(g for g in gradients if g is not None)])
    for other in found[1:]:
        assert all(torch.allclose(a, b, **CLOSE) for a, b in zip(found[0], other, strict=True))


@dataclass(frozen=True)
class Counting:
    """A network that counts the rows it heads."""

    network: Network
    headed: list[int]

    def trunk(self, view: View) -> Tensor:
        return self.network.trunk(view)

    def head(self, rows: Tensor) -> Tensor:
        self.headed.append(len(rows))
        return self.network.head(rows)

    def nats(self, rows: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        self.headed.append(len(rows))
        return self.network.nats(rows, targets, weights)

    def by_rule(self, rule: Callable[..., Tensor], rows: Tensor, *others: Tensor, fuse: bool = True) -> Tensor:
        self.headed.append(len(rows))
        return self.network.by_rule(rule, rows, *others, fuse=fuse)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_and_padding_are_not_headed(name: str) -> None:
    network, batch = Counting(network_of(SHAPES["dit"]), []), company()
    build(name, {}, V).loss(reading(network, batch), batch, key=KEY, progress=0.0)  # type: ignore[arg-type]
    assert 0 < sum(network.headed) <= int(batch.scored.sum())


@EVERY
def test_a_blank_prompt_is_no_target(name: str, options: dict[str, Any]) -> None:
    """The spare id in the place of a prompt, as for classifier-free guidance: seen, and never paid for."""
    network, family, batch = network_of(SHAPES["dit"]), build(name, options, V), company()
    blank = replace(batch, tokens=batch.tokens.masked_fill(~batch.scored, V))
    for loss, plain in zip(both(network, family, blank), both(network, family, batch), strict=True):
        assert torch.isfinite(loss.nats).all() and not loss.nats[~batch.scored].any()
        assert not torch.allclose(loss.nats, plain.nats)


@pytest.mark.parametrize("pattern", [Attention.FULL, Attention.CAUSAL, "tensor"])
def test_padding_hides_keys_by_their_positions(pattern: Any) -> None:
    """Against the definition: key k is seen by query q where the pattern has it and positions[k] < length."""
    order = torch.tensor([[2, 0, 3, 1], [3, 1, 0, 2]])
    rule = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    given = rule if pattern == "tensor" else pattern
    whole = {Attention.FULL: torch.ones(4, 4).bool(), Attention.CAUSAL: torch.ones(4, 4).tril().bool()}
    said = rule if pattern == "tensor" else whole[pattern].expand(2, 4, 4)
    lengths = torch.tensor([3, 2])
    seen = unpadded(View(order, order, given, lengths=lengths)).attention
    assert isinstance(seen, Pattern)
    seen = seen.dense("cpu")
    for row in range(2):
        for q in range(4):
            for k in range(4):
                if order[row, q] < lengths[row]:
                    assert bool(seen.expand(2, 4, 4)[row, q, k]) == bool(
                        said[row, q, k] and order[row, k] < lengths[row]
                    )


def test_left_to_right_needs_no_mask() -> None:
    """Padding comes after all who could look, and the fast kernel stays."""
    view = View(torch.zeros(2, 5).long(), torch.arange(5)[None], Attention.CAUSAL, lengths=torch.tensor([3, 5]))
    assert unpadded(view).attention is Attention.CAUSAL


def test_rows_of_a_padded_network_keep_their_lengths() -> None:
    network, batch = Padded(network_of(SHAPES["dit"]), torch.tensor(LENGTHS)), company()
    family = build("esolm", {"alpha_0": 0.4}, V)
    flipped = Batch(batch.tokens.flip(0), batch.scored.flip(0), batch.index.flip(0), batch.lengths.flip(0))  # type: ignore[union-attr]
    one = family.loss(network, batch, key=KEY, progress=0.0).nats
    other = family.loss(reading(network.network, flipped), flipped, key=KEY, progress=0.0).nats
    assert torch.allclose(one, other.flip(0), **CLOSE)
