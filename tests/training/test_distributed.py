"""Law 9: the same seed gives the same losses on any number of ranks, however they share the network and the rows."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from redraft.config import ParallelConfig, RunConfig, validated
from redraft.errors import UserError
from redraft.network.device import DTYPES
from redraft.planning.budget import SMALL, micro_batches, rows_at_a_time
from redraft.training.distributed.parallel import chosen, mesh_of
from redraft.training.distributed.ranks import Ranks
from redraft.training.loader import parts
from redraft.training.setup import set_up
from tests.rounding import CLOSE, losses_apart
from tests.small_runs import GROWN, corpus, tiny
from tests.training.spawned import losses, on_ranks

FAMILIES: dict[str, Any] = {
    "ar": "ar",
    "mdlm": "mdlm",
    "duo": "duo",
    "esolm": "esolm",
    "taught": {"name": "duo", "objective": "distillation", "rounds": 3},
}
# Two phases, whose rows Eso-LM sends through the network apart.
HYBRID = {"name": "esolm", "alpha_0": 0.5}
STEPS = 10  # each of them has its own rows, and shows what the ones before it did to weights and optimiser
ROWS = 14  # ranks and turns get uneven shares: two ranks up to three turns a step, three ranks two


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


def run(source: Path, family: Any, kind: str, precision: str, block: str = "", **train: Any) -> RunConfig:
    network = {"depth": 1, "heads": 2, "width": 16, **GROWN.get(block, {})}
    train = {"batch": ROWS, "precision": precision, "parallel": {"kind": kind}, "ema": 0.9, **train}
    return tiny(source, family=family, network=network, budget={"steps": STEPS}, train=train)


def cases(source: Path, size: int) -> dict[str, RunConfig]:
    """Two ranks show every family and every way to share a network, three that they may be any number."""
    found = {}
    for number, (name, family) in enumerate(FAMILIES.items()):
        if size == 2 or name == "ar":
            found[f"{name} fsdp float64"] = run(source, family, "fsdp", "float64", accumulate=1 + number % 2)
        if size == 2 and name in (
            "duo",
            "taught",
        ):  # the loss module is the same for all; theirs keeps more than weights
            found[f"{name} ddp float64"] = run(source, family, "ddp", "float64", accumulate=2 - number % 2)
    found["hybrid fsdp float64"] = run(source, HYBRID, "fsdp", "float64", accumulate=7)
    found["hybrid fsdp float64 dropout"] = run(source, HYBRID, "fsdp", "float64", accumulate=2, dropout=0.2)
    found["mdlm ddp float32"] = run(source, "mdlm", "ddp", "float32", accumulate=2)
    if size == 3:
        return found
    for name in GROWN:
        found[f"ar {name} fsdp float64"] = run(source, "ar", "fsdp", "float64", name, accumulate=2)
    if find_spec("peft"):
        lora = {"lora": {"rank": 2, "targets": ["qkv"]}, "adapt": {}}
        found["mdlm fsdp float64, adapters and the row of [MASK]"] = run(
            source, "mdlm", "fsdp", "float64", "llama", **lora
        )
    found["mdlm llama fsdp bfloat16"] = run(source, "mdlm", "fsdp", "bfloat16", "llama")
    found["duo hsdp float64"] = run(source, "duo", "hsdp", "float64", parallel={"kind": "hsdp", "shards": 1})
    options = {"accumulate": 2, "checkpointing": "blocks", "parallel": {"kind": "fsdp", "reshard": False}}
    deep = run(source, "duo", "fsdp", "float64", **options)
    deep = deep.model_copy(update={"network": deep.network.model_copy(update={"depth": 3})})
    found["duo fsdp float64, three blocks, recomputed, gathered once"] = deep
    again = deep.train.model_copy(update={"parallel": ParallelConfig(kind="fsdp")})
    found["duo fsdp float64, three blocks, recomputed, gathered anew"] = deep.model_copy(update={"train": again})
    found["mdlm fsdp bfloat16"] = run(source, "mdlm", "fsdp", "bfloat16", accumulate=2)
    return found


def corrupting(source: Path) -> list[RunConfig]:
    return [run(source, family, "ddp", "float32") for family in ("mdlm", "duo", "esolm")]


def both(ranks: Ranks, configs: list[RunConfig], looked_at: list[RunConfig], folder: Path) -> tuple[Any, Any]:
    """What one call of the ranks can tell: starting them takes longer than that."""
    return losses(ranks, configs, folder), shown(ranks, looked_at, folder)


@pytest.fixture(scope="module", params=[2, 3])
def gang(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The cases, and what each rank found in them."""
    configs = cases(source, request.param)
    many = on_ranks(request.param, both, list(configs.values()), corrupting(source), tmp_path_factory.mktemp("many"))
    return configs, many


@pytest.fixture(scope="module")
def alone(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The losses of one process: how ranks would share rows and network is nothing to it."""
    configs = {plain(config).model_dump_json(): plain(config) for config in cases(source, 2).values()}
    return dict(zip(configs, losses(Ranks(), list(configs.values()), tmp_path_factory.mktemp("alone")), strict=True))


def plain(config: RunConfig) -> RunConfig:
    over = {"accumulate": 1, "parallel": ParallelConfig(), "checkpointing": "none"}
    return config.model_copy(update={"train": config.train.model_copy(update=over)})


def test_losses_of_every_step_are_those_of_one_process(gang: Any, alone: dict[str, list[float]]) -> None:
    """In float64; and in what networks are trained in, to its rounding."""
    configs, many = gang
    assert all(found == many[0][0] for found, _ in many)
    for (name, config), several in zip(configs.items(), many[0][0], strict=True):
        one = alone[plain(config).model_dump_json()]
        assert len(one) == STEPS
        dtype = DTYPES[config.train.precision]
        shape = set_up(config).budget.shape
        off = CLOSE["atol"] if dtype == torch.float64 else losses_apart(shape, ROWS, 16, one, dtype)
        np.testing.assert_allclose(several, one, rtol=0, atol=off, err_msg=name)


def test_copies_of_shards_have_the_losses_of_one_process(source: Path, tmp_path: Path) -> None:
    """Four ranks as two groups, each of which holds the network in two shards (HSDP)."""
    hybrid = run(source, "duo", "hsdp", "float64", parallel={"kind": "hsdp", "shards": 2}, accumulate=2)
    many = on_ranks(4, losses, [hybrid], tmp_path / "many")
    [one] = losses(Ranks(), [plain(hybrid)], tmp_path / "alone")
    assert all(found == many[0] for found in many)
    np.testing.assert_allclose(many[0][0], one, rtol=1e-9)


def test_a_rank_sees_the_corruption_of_its_samples_that_one_process_sees(
    gang: Any, source: Path, tmp_path: Path
) -> None:
    """Bit for bit what the network is shown of each sample number, in every family that corrupts."""
    _, many = gang
    for number, one in enumerate(shown(Ranks(), corrupting(source), tmp_path)):
        assert sorted(one) == list(range(2 * ROWS))
        assert set(one) == set().union(*(found[number] for _, found in many))
        for _, found in many:
            assert all(np.array_equal(tokens, one[index]) for index, tokens in found[number].items())


def shown(ranks: Ranks, configs: list[RunConfig], folder: Path) -> list[dict[int, Any]]:
    """Tokens by sample number, of the first two steps."""
    from redraft.training.trainer import Trainer
    from redraft.types import Batch, TokenLoss, View

    found = []
    for config in configs:
        trainer, seen = Trainer.start(set_up(config), folder), dict[int, Any]()
        trunk, loss, now = trainer.network.trunk, trainer.loss, list[Any]()

        def watched(batch: Batch, progress: float, loss: Any = loss, now: list[Any] = now) -> TokenLoss:
            now[:] = batch.index.tolist()
            return loss(batch, progress)

        def looking(view: View, trunk: Any = trunk, now: list[Any] = now, seen: dict[int, Any] = seen) -> torch.Tensor:
            seen.update(zip(now, view.tokens.numpy(), strict=True))
            return trunk(view)

        trainer.loss, trainer.network.trunk = watched, looking  # type: ignore[method-assign]
        for at in trainer.run():
            if at.step == 2:
                break
        found.append(seen)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_every_row_is_paid_for_once(size: int) -> None:
    for batch in range(1, 13):
        for accumulate in (n for n in range(1, batch + 1) if batch % n == 0):
            every = [parts(batch, accumulate, rank, size) for rank in range(size)]
            paid = [place for own in every for part in own for place in part.places[: part.paid].tolist()]
            assert sorted(paid) == list(range(batch))
            for part in (part for own in every for part in own):
                assert len(part.places) >= (1 if size == 1 else min(2, batch))
                assert len(set(part.places.tolist())) == len(part.places) and part.places.max() < batch
                # so that where samples of both parities run apart, both are there
                assert size == 1 or batch == 1 or len(set((part.places % 2).tolist())) == 2


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_no_rank_reads_for_nothing_while_there_are_two_rows_for_each(size: int) -> None:
    """However often accumulation would cut a step; and what a plan says of rows at a time is what they read."""
    for batch in range(1, 40):
        for accumulate in (n for n in range(1, batch + 1) if batch % n == 0):
            config = validated(RunConfig, {"train": {"batch": batch, "accumulate": accumulate}})
            turns = micro_batches(batch, accumulate, size)
            every = [parts(batch, turns, rank, size) for rank in range(size)]
            read = sum(len(part.places) for own in every for part in own)
            assert read == batch or batch < 2 * size
            assert max(len(part.places) for own in every for part in own) == rows_at_a_time(config, size)


def test_small_networks_are_copied_and_large_ones_cut_up() -> None:
    auto = ParallelConfig()
    assert chosen(auto, Ranks(), 1) == "alone"
    one_machine, two_machines = (Ranks(0, 8, n, control=object()) for n in (8, 4))
    assert [chosen(auto, one_machine, n) for n in (SMALL, SMALL + 1)] == ["ddp", "fsdp"]
    assert chosen(auto, two_machines, SMALL + 1) == "hsdp"
    assert chosen(ParallelConfig(kind="ddp"), two_machines, SMALL + 1) == "ddp"
    with pytest.raises(UserError, match=r"train\.parallel\.shards 3 must divide the 8 ranks"):
        mesh_of("hsdp", ParallelConfig(shards=3), one_machine, "cpu")
