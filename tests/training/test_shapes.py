"""Sizes that differ from step to step: few of them where each is compiled, and no other loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from redraft.families import esolm
from redraft.families.base import build
from redraft.network.device import few_shapes
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.noise.counter_rng import Key
from redraft.registry import FAMILIES
from redraft.text.shards.packing import Rows
from redraft.training import loader
from redraft.training.loader import as_batch
from redraft.training.trainer import LossModule
from redraft.types import Batch
from tests.rounding import CLOSE, in_float64

V, L, ROWS, CPU, AWAY = 11, 20, 4, torch.device("cpu"), torch.device("meta")


def test_sizes_that_move_become_few() -> None:
    assert {few_shapes(n, 1024, AWAY) for n in range(1, 1025)} == set(range(128, 1025, 128))
    assert {few_shapes(n, 200, AWAY) for n in range(1, 201)} == {128, 200}
    assert all(few_shapes(n, 1024, CPU) == n for n in range(1, 1025))


@pytest.mark.parametrize("options", [{"alpha_0": 0.5}, {"alpha_0": 0.0}, {"alpha_0": 0.5, "variant": "A"}], ids=str)
def test_masks_that_fill_a_stream_up_change_no_loss(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    network = in_float64(initialised(Shape("llama", 2, 2, 16, 32, V, 0), 0))
    family = build("esolm", options, V)
    tokens = torch.randint(0, V, (ROWS, L), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(ROWS))
    plain = family.loss(network, batch, key=Key.of(0), progress=0.0).nats
    monkeypatch.setattr(esolm, "few_shapes", lambda size, most, device: most)
    filled = family.loss(network, batch, key=Key.of(0), progress=0.0).nats
    assert torch.allclose(plain, filled, **CLOSE)


def short_rows(keep: int) -> Rows:
    """What stochastic length gives: whole rows of `keep` tokens."""
    tokens = np.random.default_rng(0).integers(0, V, (ROWS, keep))
    return Rows(tokens, np.ones((ROWS, keep), np.bool_), np.arange(ROWS))


def test_short_rows_have_few_lengths_on_an_accelerator_and_their_own_on_a_cpu() -> None:
    seen = {as_batch(short_rows(keep), slice(None), AWAY, most=512).tokens.shape[1] for keep in range(1, 513, 7)}
    assert seen <= {128, 256, 384, 512}
    batch = as_batch(short_rows(7), slice(None), CPU, most=512)
    assert batch.tokens.shape[1] == 7 and batch.lengths is None


@pytest.mark.parametrize("name", FAMILIES)
def test_what_pads_short_rows_changes_no_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = in_float64(initialised(Shape("dit", 2, 2, 16, 32, V, 8), 0))
    loss_module, rows = LossModule(build(name, {}, V), network, None, 0), short_rows(7)
    plain = loss_module(as_batch(rows, slice(None), CPU, paid=3, most=L), 0.0)
    monkeypatch.setattr(loader, "few_shapes", lambda size, most, device: most)
    padded = loss_module(as_batch(rows, slice(None), CPU, paid=3, most=L), 0.0)
    assert padded.shape == (ROWS, L) and not padded[3:].any() and not padded[:, 7:].any()
    assert torch.allclose(padded[:3, :7], plain[:3], **CLOSE)
