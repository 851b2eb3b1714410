"""torch.compile changes no number, in training and in sampling: shown in float64."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import redraft
from redraft.errors import UserError
from redraft.evaluation.run import carry_out, open_run
from redraft.network.init import initialised
from redraft.training.loop import Trainer
from redraft.training.parallel import Descent, spread
from redraft.training.ranks import Ranks
from redraft.training.setup import set_up
from redraft.types import Canvas
from tests.rounding import CLOSE, in_float64
from tests.runs import corpus, tiny

pytestmark = pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("clang")), reason="needs a C compiler")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


@pytest.mark.parametrize("how", [True, "graphs"])
def test_compiled_training_has_the_same_losses(how: Any, source: Path, tmp_path: Path) -> None:
    found = []
    for compile in (False, how):
        train = {"compile": compile, "accumulate": 2, "precision": "float64"}
        config = tiny(source, budget={"steps": 6}, train=train)
        found.append(torch.stack([step.loss for step in Trainer.start(set_up(config), tmp_path).run()]))
    assert torch.allclose(found[0], found[1], **CLOSE)


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
    assert model.network.trunk == before


def test_graphs_of_a_network_in_parts_are_refused(source: Path) -> None:
    config = tiny(source, train={"compile": "graphs", "parallel": {"kind": "fsdp"}})
    setup = set_up(config)
    descent = Descent(setup.family, initialised(setup.budget.shape, 0), None, 0)
    with pytest.raises(UserError, match=r"train.compile graphs replays a whole network, and fsdp gathers its parts"):
        spread(descent, setup.config.train, Ranks(0, 2, 2, control=object()))
