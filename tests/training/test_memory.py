"""The memory plan of a GPU: its workspace is what the head keeps alive at its peak, counted on a CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from redraft.cli import main
from redraft.commands.plan import recipes
from redraft.config import RunConfig, merge, read_toml, validated
from redraft.families import duo, mask_uniform
from redraft.network import head
from redraft.planning.budget import CHUNK_LOGITS_GPU, CUDA, NCCL, memory_plan, plan_run, rows_at_a_time

V, WIDTH, LENGTH = 1024, 8, 64


class Alive(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still there: now, and at most."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.seen, self.bytes, self.peak = {tensor.untyped_storage()._cdata for tensor in given}, 0, 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        found = operation(*arguments, **(named or {}))
        for tensor in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage._cdata)
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return found

    def gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.bytes -= size


RULES: dict[str, Callable[..., Tensor]] = {
    "duo": lambda low, x, share: duo.uniform_nats(low, x.flip(0), x, share, -share),
    "gidd": lambda low, x, share: mask_uniform.divergence(low, x.flip(0), x, share, 1 - share),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_s_workspace_is_what_a_rule_keeps_alive(
    rule: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four chunks of half as many logits as may be alive. The rules of uniform noise, one function with its own gradient, keep
    as much compiled or not; what is compiled of others (SEDD's) keeps less."""
    chunk = 2 * V * LENGTH // 4
    monkeypatch.setitem(head.CHUNK_LOGITS, "cpu", chunk)
    monkeypatch.setattr("redraft.planning.budget.CHUNK_LOGITS_GPU", chunk)
    rows = torch.randn(LENGTH, WIDTH, dtype=getattr(torch, precision), requires_grad=True)
    weight = torch.randn(V, WIDTH, requires_grad=True)
    others = torch.arange(LENGTH), torch.linspace(0.1, 0.9, LENGTH)
    with Alive(rows, weight, *others) as alive:
        head.by_rule(RULES[rule], rows, weight, None, *others)
    config = validated(
        RunConfig,
        {
            "network": {"width": WIDTH, "heads": 1, "depth": 1},
            "data": {"length": LENGTH},
            "budget": {"steps": 1},
            "train": {"batch": 1, "device": "cuda", "precision": precision},
        },
    )
    plan = memory_plan(config, plan_run(config, V).shape)
    planned = plan.workspace - CUDA + plan.head
    assert alive.peak <= planned
    # In float32 it is a cross-entropy, with twice as many logits, that has the most.
    assert alive.peak > (0.9 if precision == "bfloat16" else 0.75) * planned


def test_the_plan_s_chunk_is_the_head_s() -> None:
    assert CHUNK_LOGITS_GPU == head.CHUNK_LOGITS_ELSEWHERE


def test_one_gpu_needs_more_than_a_chunk_of_logits(capsys: pytest.CaptureFixture[str]) -> None:
    """Its logits in bfloat16, float32 numbers for a rule; a CPU's workspace is as it was measured."""
    base: dict[str, Any] = {"network": {"size": "170M"}, "data": {"length": 2048}, "train": {"batch": 32}}
    plans = {}
    for device in ("cpu", "auto", "cuda"):
        config = validated(RunConfig, merge(base, {"budget": {"steps": 1}, "train": {"device": device}}))
        plans[device] = memory_plan(config, plan_run(config, 32000).shape).workspace
        two = memory_plan(config, plan_run(config, 32000).shape, ranks=2).workspace
        assert (two > NCCL) == (device != "cpu")
    assert plans["cpu"] == plans["auto"] == 70e6
    assert plans["cuda"] > CHUNK_LOGITS_GPU // 2 * (2 + 4 * 5)
    flags = ["--size", "19M", "--steps", "1", "--length", "512", "--batch", "8"]
    for more, told in (([], False), (["--gpus", "1"], True)):
        main(["plan", *flags, *more])
        assert ("A rank of 1: " in capsys.readouterr().out) == told


@pytest.mark.parametrize("name", [name for name in recipes() if name.startswith("1.7B")])
def test_large_recipes_fill_half_of_80_gb_on_128_gpus(name: str) -> None:
    """In as few turns as fit with room to spare: weights are gathered for each."""
    config = validated(RunConfig, read_toml(recipes()[name]))
    fewer = config.model_copy(update={"train": config.train.model_copy(update={"accumulate": 1})})
    shape = plan_run(config, 131_072).shape
    each, too_much = (memory_plan(one, shape, 1.0, 128, 8).total for one in (config, fewer))
    assert rows_at_a_time(config, 128) == 4
    assert 40e9 < each < 60e9 and too_much > 80e9
