"""Dropout: nothing at 0, right in expectation, off outside training, and a function of the sample, not of its batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.cli import main
from redraft.config import RunConfig
from redraft.families.base import build
from redraft.network.dropout import Dropped, dropped
from redraft.network.padding import Padded, Within, of_rows, reading
from redraft.registry import FAMILIES
from redraft.training.setup import set_up
from redraft.training.trainer import LossModule, Trainer
from redraft.types import Batch, Dropout, View
from tests.laws.test_sampling import small_network
from tests.rounding import CLOSE
from tests.small_runs import corpus, tiny

V, L, ROWS, RATE = 3, 12, 6, 0.25
CASES: list[tuple[str, dict[str, Any]]] = [*((name, {}) for name in FAMILIES), ("esolm", {"alpha_0": 0.5})]


def batch(rows: slice = slice(ROWS), lengths: bool = False) -> Batch:
    tokens = torch.randint(0, V, (ROWS, L), generator=torch.Generator().manual_seed(0))
    size = torch.tensor([12, 7, 12, 5, 9, 12])
    scored = torch.arange(L) < size[:, None] if lengths else torch.ones(ROWS, L, dtype=torch.bool)
    return Batch(tokens[rows], scored[rows], torch.arange(20, 26)[rows], size[rows] if lengths else None)


def loss(family: str, options: dict[str, Any], some: Batch, rate: float) -> Tensor:
    module = LossModule(build(family, options, V), small_network(), None, 0, rate)
    return module(some, 0.0)


@pytest.mark.parametrize(("family", "options"), CASES)
def test_no_dropout_is_the_network_itself(
    family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 0 nothing is wrapped, no uniform is drawn, and the bits are those of a module that knows of no dropout."""
    monkeypatch.setattr(LossModule, "dropping", lambda self, index: pytest.fail("wrapped"))
    module = LossModule(build(family, options, V), small_network(), None, 0)
    assert torch.equal(loss(family, options, batch(), 0.0), module(batch(), 0.0))


def test_what_is_kept_has_the_expectation_of_what_was_there() -> None:
    """Over an even grid of uniforms, exactly; and the uniforms of the counters are even to five standard errors."""
    x, grid = torch.randn(1, 1, 5, dtype=torch.float64), (torch.arange(400).double()[:, None, None] + 0.5) / 400
    mean = dropped(x.expand(400, 1, 5), (grid >= RATE).expand(400, 1, 5), RATE).mean(0)
    assert torch.allclose(mean, x[0], rtol=1e-12) and dropped(x, None, RATE) is x
    keep = torch.cat([part.flatten() for pair in kept(batch()).keep for part in pair]).double()
    assert abs(float(keep.mean()) - (1 - RATE)) < 5 * (RATE * (1 - RATE) / len(keep)) ** 0.5


def kept(some: Batch) -> Dropout:
    """What is kept of a view of the batch."""
    seen = list[View]()

    class Shown:
        def trunk(self, view: View) -> Tensor:
            seen.append(view)
            return view.tokens

    network = small_network()
    module = LossModule(build("mdlm", {}, V), network, None, 0, RATE)
    own = module.dropping(some.index)
    Dropped(Shown(), own.shape, RATE, own.index, own.uniforms).trunk(  # type: ignore[arg-type]
        View(some.tokens, torch.arange(some.tokens.shape[1])[None])
    )
    assert seen[0].dropout is not None
    return seen[0].dropout


def test_blocks_branches_samples_and_places_drop_independently() -> None:
    """Any two of them agree as often as independent draws do, to five standard errors."""
    keep = torch.stack([part for pair in kept(batch()).keep for part in pair])  # [2 blocks, B, L, d]
    agree = (1 - RATE) ** 2 + RATE**2
    for one, other in (
        (keep[0], keep[1]),
        (keep[0], keep[-1]),
        (keep[:, 0], keep[:, 1]),
        (keep[:, :, 0], keep[:, :, 1]),
    ):
        share = float((one == other).double().mean())
        assert abs(share - agree) < 5 * (agree * (1 - agree) / one.numel()) ** 0.5


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(("family", "options"), CASES)
@torch.no_grad()
def test_rows_lose_the_same_in_any_batch(family: str, options: dict[str, Any], lengths: bool) -> None:
    together = loss(family, options, batch(lengths=lengths), RATE)
    for rows in (slice(0, 2), slice(1, 2), slice(2, ROWS)):
        assert torch.allclose(loss(family, options, batch(rows, lengths), RATE), together[rows], **CLOSE)
    assert not torch.allclose(together, loss(family, options, batch(lengths=lengths), 0.0), **CLOSE)


def test_rows_are_picked_under_every_wrapper() -> None:
    network = LossModule(build("ar", {}, V), small_network(), None, 0, RATE).dropping(torch.arange(4))
    which, lengths = torch.tensor([True, False, True, False]), torch.arange(4) + 1
    part = of_rows(Padded(network, lengths), which)
    assert isinstance(part, Padded) and isinstance(part.network, Dropped)
    assert part.lengths.tolist() == [1, 3] and part.network.index.tolist() == [0, 2]
    within = of_rows(Within(network, lengths[:, None]), which)
    assert isinstance(within, Within) and isinstance(within.network, Dropped)
    assert within.network.index.tolist() == [0, 2] and reading(network, batch()) is network


# Runs


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


def run(source: Path, block: str = "dit", **train: Any) -> RunConfig:
    network = {"block": block, "depth": 2, "heads": 2, "width": 16}
    table = {"batch": 6, "precision": "float64", "dropout": 0.2, **train}
    return tiny(source, family={"name": "esolm", "alpha_0": 0.5}, network=network, budget={"steps": 8}, train=table)


def trained(config: RunConfig, folder: Path) -> tuple[list[float], list[Tensor]]:
    trainer = Trainer.start(set_up(config), folder)
    return [step.loss.item() for step in trainer.run()], [p.detach() for p in trainer.network.parameters()]


@pytest.mark.parametrize("block", ["dit", "llama"])
def test_a_loss_does_not_depend_on_accumulation_or_recomputation(source: Path, block: str, tmp_path: Path) -> None:
    one, _ = trained(run(source, block), tmp_path)
    parts, _ = trained(run(source, block, accumulate=3, checkpointing="blocks"), tmp_path)
    none, _ = trained(run(source, block, dropout=0.0), tmp_path)
    torch.testing.assert_close(torch.tensor(parts), torch.tensor(one), rtol=0, atol=1e-9)
    assert abs(none[-1] - one[-1]) > 1e-6


def test_a_run_that_is_continued_ends_in_the_same_bits(source: Path, tmp_path: Path) -> None:
    config = run(source, precision="float32")
    losses, weights = trained(config, tmp_path / "whole")
    (tmp_path / "broken").mkdir()
    first = Trainer.start(set_up(config), tmp_path / "broken")
    begun = [next(steps).loss.item() for steps in [first.run()] for _ in range(3)]
    first.save(tmp_path / "broken")
    rest, same = trained(config, tmp_path / "broken")
    assert begun + rest == losses and all(map(torch.equal, same, weights))


def test_what_is_scored_drops_nothing(source: Path, tmp_path: Path) -> None:
    """The bound of a trained network is that of one that has its weights and was never trained."""
    config = run(source, precision="float32")
    trainer = Trainer.start(set_up(config), tmp_path)
    list(trainer.run())
    fresh = Trainer.start(set_up(run(source, precision="float32", dropout=0.0)), tmp_path / "other").network
    fresh.load_state_dict(trainer.network.state_dict())
    view = View(torch.randint(0, 9, (2, 8)), torch.arange(8)[None])
    with torch.no_grad():
        assert torch.equal(trainer.network.trunk(view), fresh.trunk(view))


@pytest.mark.parametrize(("value", "message"), [("1", "less than 1"), ("-0.1", "greater than or equal to 0")])
def test_a_share_that_is_none_is_refused(value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["plan", "--size", "14k", "--steps", "5", "--train.dropout", value])
    assert refused.value.code == 2 and message in capsys.readouterr().err
