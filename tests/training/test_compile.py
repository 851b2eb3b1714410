"""torch.compile changes no number, in training and in sampling: shown in float64."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import redraft
from redraft.errors import UserError
from redraft.families.base import build
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.noise.counter_rng import Key
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out
from redraft.training.distributed.parallel import parallelize
from redraft.training.distributed.ranks import Ranks
from redraft.training.loader import as_batch
from redraft.training.setup import set_up
from redraft.training.trainer import LossModule, Trainer
from redraft.types import Batch, Canvas
from tests.rounding import CLOSE, in_float64
from tests.small_runs import GROWN, corpus, tiny

pytestmark = pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("clang")), reason="needs a C compiler")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


@pytest.mark.parametrize(("how", "dropout"), [(True, 0.0), ("graphs", 0.1)])
def test_compiled_training_has_the_same_losses(how: Any, dropout: float, source: Path, tmp_path: Path) -> None:
    found = []
    for compile in (False, how):
        train = {"compile": compile, "accumulate": 2, "precision": "float64", "dropout": dropout}
        config = tiny(source, budget={"steps": 6}, train=train)
        found.append(torch.stack([step.loss for step in Trainer.start(set_up(config), tmp_path).run()]))
    assert torch.allclose(found[0], found[1], **CLOSE)


@pytest.mark.parametrize("block", GROWN)
def test_blocks_of_other_shapes_have_the_same_loss_compiled(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step: nats and every gradient. Each block is one graph; no kernel is made of it, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    shape = Shape(vocab=11, cond=0, heads=2, width=16, hidden=32, **{**GROWN[block], "depth": 1})
    batch = Batch(torch.arange(20).view(2, 10) % 11, torch.ones(2, 10, dtype=torch.bool), torch.arange(2))
    found = []
    for compiled in (False, True):
        network = in_float64(initialised(shape, 0)).requires_grad_(True)
        if compiled:
            network.compile_blocks()
        nats = build("ar", {}, 11).loss(network, batch, key=Key.of(0), progress=0.0).nats
        nats.sum().backward()
        found.append([nats, *(parameter.grad for parameter in network.parameters())])
    assert all(torch.allclose(one, other, **CLOSE) for one, other in zip(*found, strict=True))


def test_a_compiled_denoiser_predicts_the_same_and_leaves_the_model_as_it_was(source: Path, tmp_path: Path) -> None:
    for _ in carry_out(open_run(tiny(source, budget={"steps": 4}), tmp_path / "run"), tmp_path / "run"):
        pass
    model = redraft.load(tmp_path / "run")
    in_float64(model.network)
    before = model.network.trunk
    canvas, text = model.canvas("", 2, 16), []
    for compiled in (False, True):
        denoiser = model.denoiser(compiled=compiled)
        *_, last = model.frames(canvas, denoiser, "", 8, 0)
        assert isinstance(last, Canvas)
        text.append((last.tokens, denoiser.calls))
    assert torch.equal(text[0][0], text[1][0]) and text[0][1] == text[1][1]
    assert denoiser.network is model.denoiser(compiled=True).network  # folded once, at addresses that stay
    assert model.network.trunk == before


def test_graphs_add_gradients_up_where_they_were_before_the_first_step(source: Path, tmp_path: Path) -> None:
    """A replay writes over what the one before it returned: the gradient of the first micro-batch must not live in it."""
    config = tiny(source, budget={"steps": 2}, train={"compile": "graphs", "accumulate": 2})
    trainer = Trainer.start(set_up(config), tmp_path)
    where = [p.grad.data_ptr() for p in trainer.network.parameters() if p.grad is not None]
    for _ in trainer.run():
        assert where == [p.grad.data_ptr() for p in trainer.network.parameters() if p.grad is not None]
    assert len(where) == len(list(trainer.network.parameters()))


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
def test_blocks_share_one_graph_and_the_teacher_is_fused_too(
    checkpointing: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph forward, whatever the depth and whoever runs it: student, teacher, recomputation."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter, plain = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: plain(function, backend=counter))
    options = {"name": "duo", "options": {"objective": "distillation", "rounds": 1}}
    config = tiny(source, family=options, network={"depth": 2}, train={"compile": True, "checkpointing": checkpointing})
    setup = set_up(config)
    network = initialised(setup.budget.shape, 0)
    teacher = initialised(setup.budget.shape, 1).requires_grad_(False)
    loss_module = parallelize(
        LossModule(setup.family, network, teacher, 0), network, teacher, setup.config.train, Ranks()
    )
    rows = setup.reader.step(0)
    for _ in range(2):
        loss_module(as_batch(rows, slice(0, 4), "cpu"), 0.0).sum().backward()
    assert setup.budget.shape.depth > 1
    assert counter.frame_count <= 2  # one with gradients, and one without for the teacher


def test_compile_is_the_default_where_there_is_an_accelerator_and_not_on_a_cpu(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for there in (False, True):
        monkeypatch.setattr("redraft.training.setup.accelerated", lambda device, there=there: there)
        assert set_up(tiny(source)).config.train.compile is there
        assert set_up(tiny(source, train={"compile": False})).config.train.compile is False


@pytest.mark.parametrize("flag", ["--compile", "--no-compile"])
def test_the_flag_is_the_setting(flag: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from redraft import cli
    from redraft.commands import train

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(train, "lead", lambda options, overrides, ranks: asked.append(overrides))
    cli.main(["train", "--into", str(tmp_path / "run"), "--flops", "1e12", flag])
    assert asked[0]["train"]["compile"] is (flag == "--compile")


def test_graphs_of_a_network_in_parts_are_refused(source: Path) -> None:
    config = tiny(source, train={"compile": "graphs", "parallel": {"kind": "fsdp"}})
    setup = set_up(config)
    loss_module = LossModule(setup.family, initialised(setup.budget.shape, 0), None, 0)
    with pytest.raises(UserError, match=r"train.compile graphs replays a whole network, and fsdp gathers its parts"):
        parallelize(loss_module, loss_module.network, None, setup.config.train, Ranks(0, 2, 2, control=object()))


def test_the_noise_of_a_compiled_hash_is_the_same_to_the_bit() -> None:
    """Integers wrap alike, and a uniform is one of 2^53: whatever device compiles it, the corruption is the same."""
    from redraft.accelerator import fused
    from redraft.noise import counter_rng

    for seed in (0, 7):
        start = counter_rng._start(counter_rng.Key.of(seed), torch.empty(0))
        for rows in (3, 5):
            index, place = torch.arange(rows)[:, None] * 10**12, torch.arange(40)
            plain, made = counter_rng._uniform(start, index, place), fused(counter_rng._uniform)(start, index, place)
            assert torch.equal(plain, made)
