"""Everything that is computed is computed where the model is: shown on a device without numbers, where any machine can look.

On the `meta` device tensors have shapes and no contents. A dispatch mode refuses every operation that mixes them with tensors
of the CPU (numbers on their own apart), and answers the questions that need contents: each is asked both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental import _config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redraft.errors import UserError
from redraft.evaluation.likelihood.nelbo import bound
from redraft.families.base import build
from redraft.hub.model import Model
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.noise.counter_rng import Key
from redraft.registry import FAMILIES, SAMPLERS
from redraft.sampling.base import build as build_sampler
from redraft.text.shards.packing import Rows
from redraft.text.tokenizers.tokenizer import Bytes
from redraft.training.loader import as_batch
from redraft.types import Batch

V, L, AWAY = 257, 8, torch.device("meta")


class Elsewhere(TorchDispatchMode):
    """`answer`: what a tensor without contents is said to hold, where one number of it is asked for."""

    def __init__(self, answer: int):
        super().__init__()
        self.answer = answer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        away = [tensor for tensor in tensors if tensor.is_meta]
        if away and name == "_local_scalar_dense":
            return self.answer
        if away and name == "_to_copy" and str(kwargs.get("device")) == "cpu":
            return torch.full(args[0].shape, self.answer, dtype=kwargs.get("dtype") or args[0].dtype)
        here = [tensor for tensor in tensors if not tensor.is_meta and tensor.ndim]
        if away and here and name not in ("copy_", "_to_copy"):
            shapes = [[tuple(tensor.shape) for tensor in some] for some in (away, here)]
            raise AssertionError(f"{name} is given {shapes[0]} on the device and {shapes[1]} on the CPU")
        return func(*args, **kwargs)


@pytest.fixture(params=[0, 1], autouse=True)
def elsewhere(request: pytest.FixtureRequest) -> Iterator[None]:
    with _config.patch(meta_nonzero_assume_all_nonzero=True), Elsewhere(request.param):
        yield


def network(block: str = "dit", dtype: torch.dtype = torch.float32) -> Transformer:
    return initialised(Shape(block, 1, 2, 16, 64, V, 8 if block == "dit" else 0), 0, dtype).to(AWAY)


def batch() -> Batch:
    return Batch(
        torch.zeros(4, L, dtype=torch.int64, device=AWAY),
        torch.ones(4, L, dtype=torch.bool, device=AWAY),
        torch.arange(4, device=AWAY),
    )


def rows(count: int) -> Rows:
    """As text is read: on the CPU."""
    shape = count, L
    return Rows(
        np.zeros(shape, np.int64),
        np.ones(shape, np.bool_),
        np.arange(count),
        np.full(count, L),
        np.zeros(shape, np.int32),
    )


@pytest.mark.parametrize(("block", "dtype"), [("dit", torch.float32), ("llama", torch.bfloat16)])
@pytest.mark.parametrize("name", FAMILIES)
def test_losses_and_gradients(name: str, block: str, dtype: torch.dtype) -> None:
    net, family = network(block, dtype), build(name, {}, V)
    nats = family.loss(net, batch(), key=Key.of(0), progress=0.5).nats
    nats.sum().backward()
    assert nats.device == AWAY and nats.shape == (4, L)
    assert all(p.grad is None or p.grad.device == AWAY for p in net.parameters())
    assert family.nelbo(net, batch(), key=Key.of(0)).nats.device == AWAY


PAIRS = [(family, sampler) for family in FAMILIES for sampler in SAMPLERS]


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_samplers(name: str, sampler: str) -> None:
    family = build(name, {}, V)
    try:
        build_sampler(sampler, {}, family)
    except UserError:
        pytest.skip("an impossible pair")
    model = Model(family, network(), Bytes(), L, {})
    canvas = model.canvas("" if name == "ar" else "ab", 2, L)
    try:
        for frame in islice(model.frames(canvas, model.denoiser(0.9, 0.9), sampler, 3, 0), 20):
            assert frame.tokens.device == AWAY
    except UserError as error:
        assert name == "ar" and "fixed token" in str(error)  # where all positions are said to be fixed


@pytest.mark.parametrize("name", FAMILIES)
def test_scores(name: str) -> None:
    family = build(name, {}, V)
    model = Model(family, network(), Bytes(), L, {})
    assert model.score("longer text", draws=2)[0].tokens == 11 > L
    assert bound(model.network, family, rows(3), 2, 4).windows == 3
    t = torch.full((4,), 0.5, dtype=torch.float64, device=AWAY) if family.clocked else None
    assert model.family.log_p(model.network, batch().tokens, t, None).device == AWAY


def test_what_training_reads_is_sent() -> None:
    sent = as_batch(rows(3), slice(0, 2), AWAY)
    found = sent.tokens, sent.scored, sent.index, sent.lengths, sent.documents
    assert {x.device for x in found if x is not None} == {AWAY} and len(sent.tokens) == 2
