"""How often the host waits for the device: counted on a device without numbers, where every question shows.

A wait is a number or a shape that the device alone knows. Between two of them the host runs ahead of a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental import _config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redraft.families.base import TeacherStudent, build
from redraft.hub.model import Model
from redraft.network.head import summed
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.noise.counter_rng import Key
from redraft.registry import FAMILIES
from redraft.text.tokenizers.tokenizer import Bytes
from redraft.training.trainer import LossModule
from redraft.types import Batch

V, L, ROWS, AWAY = 257, 16, 4, torch.device("meta")
ASKING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "masked_scatter_backward",
    "equal",
    "is_nonzero",
    "_unique2",
}
OBJECTIVES = [
    *((name, {}) for name in FAMILIES),
    ("mdlm", {"objective": "nelbo"}),
    ("duo", {"objective": "curriculum"}),
    ("duo", {"objective": "distillation"}),
    ("esolm", {"alpha_0": 0.5}),
    ("gidd", {"weights": "nelbo"}),
    ("bd3lm", {"objective": "low_variance"}),
]


class Waits(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        away = any(isinstance(x, Tensor) and x.is_meta for x in tree_leaves((args, kwargs)))
        picks = name == "index" and any(x is not None and x.is_meta and x.dtype == torch.bool for x in args[1])
        home = away and name == "_to_copy" and str(kwargs.get("device")) == "cpu"
        self.count += away and (name in ASKING or picks or home)
        if away and name == "_local_scalar_dense":
            return 0
        if home:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


@contextmanager
def waits() -> Iterator[Waits]:
    with _config.patch(meta_nonzero_assume_all_nonzero=True), Waits() as mode:
        yield mode


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> Transformer:
    return initialised(Shape("dit", 2, 2, 16, 64, V, 8), seed, dtype)


def batch(scored: Tensor, known: bool) -> Batch:
    tokens = torch.randint(0, V, (ROWS, L), generator=torch.Generator().manual_seed(0))
    places = scored.flatten().nonzero()[:, 0] if known else None
    return Batch(tokens, scored, torch.arange(ROWS), places=places)


SCORED = {"all": torch.ones(ROWS, L, dtype=torch.bool), "some": torch.arange(L).ge(5).expand(ROWS, L)}


@pytest.mark.parametrize("scored", SCORED)
@pytest.mark.parametrize(("name", "most"), [("ar", 0), ("mdlm", 1), ("duo", 0), ("esolm", 1), ("bd3lm", 1)])
def test_a_micro_batch_waits_at_most_once(name: str, most: int, scored: str) -> None:
    """Once where masks are: how many tokens a draw hides is the device's to say."""
    known = batch(SCORED[scored], known=True)
    away = Batch(*(x.to(AWAY) for x in (known.tokens, known.scored, known.index)), places=known.places.to(AWAY))  # type: ignore[union-attr]
    loss_module = LossModule(build(name, {}, V), network().to(AWAY), None, 0)
    with waits() as seen:
        loss_module(away, 0.0).sum().backward()
    assert seen.count == most


@pytest.mark.parametrize("name", ["ar", "mdlm", "duo", "esolm", "bd3lm"])
def test_a_sampling_step_waits_for_nothing(name: str) -> None:
    model = Model(build(name, {}, V), network().to(AWAY), Bytes(), L, {})
    with torch.no_grad(), waits() as seen:
        frames = model.frames(model.canvas("", 2, L), model.denoiser(), "", 4, 0)
        next(frames)
        before = seen.count
        assert sum(1 for _ in islice(frames, 3)) > 0 and seen.count == before


@pytest.mark.parametrize(("name", "options"), OBJECTIVES, ids=str)
def test_where_tokens_are_scored_may_be_told_or_found(name: str, options: dict[str, Any]) -> None:
    family, net = build(name, options, V), network()
    shown = TeacherStudent(net, network(seed=1)) if options.get("objective") == "distillation" else net
    for scored in SCORED.values():
        for loss in (
            lambda b: family.loss(shown, b, key=Key.of(0), progress=0.0),
            lambda b: family.nelbo(net, b, key=Key.of(0)),
        ):
            told, found = (loss(batch(scored, known)).nats for known in (True, False))
            assert torch.equal(told, found) and not told[~scored].any()


@pytest.mark.parametrize(("name", "options"), OBJECTIVES, ids=str)
def test_training_descends_a_plain_sum(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What lets the head make gradients with the values and ask nobody: with the question asked they are the same."""
    found = []
    for promise in (True, False):
        if not promise:
            monkeypatch.setattr("redraft.training.trainer.summed", lambda: summed(False))
        net, teacher = (network(torch.float64, seed).double() for seed in (0, 1))
        taught = options.get("objective") == "distillation"
        loss_module = LossModule(build(name, options, V), net, teacher.requires_grad_(False) if taught else None, 0)
        (0.7 * loss_module(batch(SCORED["some"], True), 0.0).sum()).backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert torch.allclose(found[0], found[1], rtol=1e-10, atol=1e-10 * float(found[1].abs().max()))
