"""The shipped recipes of both papers plan the papers' own steps and tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from redraft.commands.plan import recipes
from redraft.config import RunConfig, merge, read_toml, validated
from redraft.errors import UserError
from redraft.network.sizes import LADDER
from redraft.planning.budget import Budget, memory_plan, plan_run, shards_of
from redraft.planning.lr_schedule import learning_rate, warmup_steps
from redraft.planning.study import Study, plan_study
from redraft.text.tokenizers.tokenizer import load_tokenizer, vocabulary

BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20)
ROW, STEP = 2048, 256 * 2048
# arXiv:2602.15014: GFLOPs that its profiler printed for the forward pass of a row, and max_steps at each budget.
PAPER: dict[str, tuple[float, int, int, int, int, int]] = {
    "6M": (53.026, 147333, 245555, 736666, 1473333, 2455556),
    "19M": (108.6, 71938, 119897, 359691, 719383, 1198971),
    "34M": (170.57, 45802, 76337, 229011, 458023, 763371),
    "48M": (222.747, 35073, 58455, 175367, 350734, 584557),
    "66M": (285.808, 27334, 45557, 136673, 273347, 455579),
    "85M": (346.382, 22554, 37590, 112772, 225545, 375909),
    "75M": (406.822, 19203, 32006, 96018, 192037, 320062),
    "113M": (449.41, 17383, 28973, 86919, 173839, 289731),
    "142M": (536.596, 14559, 24265, 72796, 145593, 242656),
    "170M": (623.778, 12524, 20874, 62622, 125244, 208741),
    "180M": (671.04, 11642, 19403, 58211, 116423, 194039),
    "206M": (750.127, 10414, 17358, 52074, 104149, 173581),
    "231M": (829.21, 9421, 15702, 47108, 94216, 157026),
    "268M": (960.367, 8134, 13558, 40674, 81349, 135581),
    "302M": (1063.6, 7345, 12242, 36726, 73453, 122422),
    "336M": (1166.9, 6695, 11158, 33475, 66950, 111584),
    "472M": (1618.7, 4826, 8044, 24132, 48264, 80440),
    "551M": (1860.5, 4199, 6998, 20995, 41991, 69985),
    "571M": (1940, 4027, 6711, 20135, 40270, 67117),
    "629M": (2102.3, 3716, 6193, 18580, 37161, 61936),
    "666M": (2232.6, 3499, 5832, 17496, 34992, 58321),
    "761M": (2525.2, 3093, 5156, 15469, 30938, 51563),
    "831M": (2754.5, 2836, 4727, 14181, 28362, 47271),
    "944M": (3102.7, 2517, 4196, 12589, 25179, 41966),
    "1233M": (4025.5, 1940, 3234, 9703, 19407, 32345),
    "1476M": (4806.6, 1625, 2708, 8126, 16253, 27089),
    "1678M": (5425.5, 1439, 2399, 7199, 14399, 23999),
    "2121M": (6805.4, 1147, 1913, 5739, 11479, 19133),
}  # fmt: skip
LABELS = ("ar", "mdlm", "duo", "esolm")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As many ids as Llama 2's tokenizer has."""
    return words(tmp_path_factory.mktemp("llama") / "tokenizer.json", 32000)


def words(file: Path, size: int) -> str:
    ids = {"</s>": 0, **{f"w{i}": i for i in range(1, size)}}
    model = {"type": "WordLevel", "vocab": ids, "unk_token": "w1"}
    end = {"id": 0, "content": "</s>", "special": True}
    end |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    file.write_text(json.dumps({"version": "1.0", "added_tokens": [end], "model": model}))
    return str(file)


def grid(name: str, tokenizer: str, sizes: int | None = None) -> Study:
    """A recipe's study; with `sizes`, so many at every budget."""
    table = merge(read_toml(recipes()[name]), {"base": {"data": {"tokenizer": tokenizer}}})
    if sizes:
        table["arm"] = [merge(arm, {"grid": {"sizes": sizes}}) for arm in table["arm"]]
    return plan_study(table)


def planned(name: str, vocab: int = 32000, **over: Any) -> tuple[RunConfig, Budget]:
    config = validated(RunConfig, merge(read_toml(recipes()[name]), over))
    return config, plan_run(config, vocab)


@pytest.fixture(scope="module")
def whole(tokenizer: str) -> Study:
    """The first paper's grid with all its sizes at every budget."""
    return grid("isoflop-scaling-beyond", tokenizer, len(PAPER))


def test_the_first_paper_s_grid_has_its_steps_and_tokens(whole: Study) -> None:
    """Each of 28 x 5 cells for every family; what the paper's profiler counted is our products and up to 0.3 % more."""
    assert len(whole.runs) == len(PAPER) * len(BUDGETS) * len(LABELS)
    for run in whole.runs:
        gflops, *steps = PAPER[run.config.network.size or ""]
        assert run.budget.steps == steps[BUDGETS.index(run.config.budget.flops or 0)], run.name
        assert run.budget.tokens == run.budget.steps * STEP
        counted = run.budget.flops["blocks+head"] / run.budget.steps / (3e9 * gflops * 256)
        assert 0.997 < counted < 0.9999, run.name


@pytest.mark.parametrize(
    "other", [{"data": {"length": 1024}}, {"network": {"size": "19M"}}, {"data": {"tokenizer": "bytes"}}]
)
def test_a_count_of_another_network_is_refused(other: dict[str, Any]) -> None:
    table = {"network": {"size": "6M"}, "data": {"length": ROW}, "budget": {"flops": 6e18, "forward": 53.026e9}}
    config = validated(RunConfig, merge(table, other))
    with pytest.raises(UserError, match=r"budget.forward 5.303e.10 is not of this network: .* leave it out"):
        plan_run(config, vocabulary(other.get("data", {}).get("tokenizer", "llama2_32k")))


def test_a_count_buys_steps_of_flops_alone() -> None:
    with pytest.raises(UserError, match=r"budget.forward tells how many steps budget.flops buys"):
        validated(RunConfig, {"budget": {"steps": 5, "forward": 53.026e9}})


def test_recipes_are_planned_before_anyone_has_their_tokenizers() -> None:
    """The sizes of published tokenizers are known; training asks for the file."""
    for name, path in recipes().items():
        table = read_toml(path)
        tokenizer = table.get("base", table).get("data", {}).get("tokenizer", "bytes")
        if "/" not in tokenizer:
            assert vocabulary(tokenizer) >= 257, name
    assert (vocabulary("llama2_32k"), vocabulary("nemotron_128k")) == (32_000, 131_072)
    with pytest.raises(UserError, match=r"no tokenizer 'llama2_32k' .--tokenizer names yours"):
        load_tokenizer("llama2_32k")


def test_all_families_of_a_cell_get_the_same_steps(whole: Study) -> None:
    cells: dict[tuple[str | None, float | None], set[int]] = {}
    for run in whole.runs:
        cells.setdefault((run.config.network.size, run.config.budget.flops), set()).add(run.budget.steps)
    assert {len(found) for found in cells.values()} == {1}


@pytest.mark.parametrize("name", ["isoflop-scaling-beyond", "isoflop-smdm"])
def test_the_grids_train_as_the_papers_did(name: str, tokenizer: str) -> None:
    study = grid(name, tokenizer)
    for run in study.runs:
        train, steps = run.config.train, run.budget.steps
        assert (train.batch, run.config.data.length, train.ema) == (256, ROW, 0)
        assert warmup_steps(train, steps) == max(100, round(0.01 * steps))
        assert learning_rate(train, steps, steps) == pytest.approx(2e-5)
        assert max(learning_rate(train, s, steps) for s in (warmup_steps(train, steps), steps // 2)) == pytest.approx(
            2e-4
        )
    per_budget = {flops: [r for r in study.runs if r.config.budget.flops == flops] for flops in BUDGETS}
    assert {len(runs) for runs in per_budget.values()} == {9 * len({run.arm for run in study.runs})}


SMDM = [("6M", 6e18, 303_004, "158.9"), ("170M", 1e19, 18_710, "9.8"), ("170M", 1e20, 187_107, "98.1")]
SMDM += [("1028M", 1e20, 30_932, "16.2")]


def test_smdm_s_grid_has_its_steps_and_tokens(tokenizer: str) -> None:
    runs = grid("isoflop-smdm", tokenizer, len(LADDER)).runs
    assert len(runs) == len(LADDER) * len(BUDGETS) * 2
    for size, flops, steps, billions in SMDM:
        cell = [run.budget for run in runs if (run.config.network.size, run.config.budget.flops) == (size, flops)]
        assert [b.steps for b in cell] == [steps, steps]
        assert {f"{b.tokens / 1e9:.1f}" for b in cell} == {billions}


def test_smdm_s_1028m_runs_have_its_steps_and_tokens() -> None:
    _, budget = planned("smdm-1028M-1600e18")
    assert (budget.steps, f"{budget.tokens / 1e9:.1f}") == (494_927, "259.5")
    config, budget = planned("smdm-1028M")
    assert budget.steps == 256_478
    assert (
        f"{budget.steps * config.train.batch * ROW / 1e9:.1f}" == "537.9"
    )  # as SMDM counts: rows cut short as whole ones
    assert budget.tokens == pytest.approx(256_478 * 1024 * (0.99 * 2048 + 0.01 * 1024.5), rel=1e-6)


@pytest.mark.parametrize("family", LABELS)
def test_the_two_phases_of_the_1_7b_runs(family: str) -> None:
    """1024 rows of 2048, 2.10 M tokens a step; 1.05 T tokens, then 0.73 T, at the rates of the paper's scripts."""
    for phase, steps, trillions, peak, end in ((1, 500_000, "1.05", 4e-4, 3e-4), (2, 350_000, "0.73", 3e-4, 4e-5)):
        config, budget = planned(f"1.7B-{family}-phase{phase}", vocab=131_072)
        assert (config.family.name, budget.steps) == (family, steps)
        whole = budget.tokens / (1 if family == "ar" else 0.99 + 0.01 * 1024.5 / 2048)  # as if no row were cut short
        assert whole == pytest.approx(steps * 1024 * 2048, rel=1e-6)
        assert f"{whole / 1e12:.2f}" == trillions
        assert (budget.shape.width, budget.shape.depth, budget.shape.heads) == (2176, 28, 17)
        assert config.data.random_length == (0.0 if family == "ar" else 0.01)
        assert learning_rate(config.train, 1999, steps) == pytest.approx(peak)
        assert learning_rate(config.train, steps, steps) == pytest.approx(end)


def test_phase_one_ends_where_the_paper_s_longer_cosine_stood() -> None:
    """Its cosine from 4e-4 to 1e-4 over 1.28 M steps, at the step 500,000 that phase 2 began from: 3.0e-4."""
    config, budget = planned("1.7B-ar-phase1")
    theirs = config.train.model_copy(update={"min_lr": 0.25})
    there = learning_rate(theirs, 500_000, 1_280_000)
    assert learning_rate(config.train, budget.steps, budget.steps) == pytest.approx(there, rel=0.01)


@pytest.mark.parametrize("name", [name for name in recipes() if "arm" not in read_toml(recipes()[name])])
def test_every_recipe_of_a_run_is_valid(name: str) -> None:
    assert planned(name)[1].steps > 0


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_says_in_its_first_line_what_it_is(name: str) -> None:
    first = recipes()[name].read_text().splitlines()[0]
    assert first.startswith("# ") and 30 < len(first) < 128


@pytest.mark.parametrize("kind", ["auto", "ddp", "fsdp", "hsdp"])
@pytest.mark.parametrize(("ranks", "per_node"), [(1, 1), (8, 8), (16, 8)])
@pytest.mark.parametrize("size", ["19M", "336M"])
def test_a_plan_shares_a_network_as_training_does(kind: str, ranks: int, per_node: int, size: str) -> None:
    from redraft.training.distributed.parallel import chosen
    from redraft.training.distributed.ranks import Ranks

    config, budget = planned("smdm-1028M", network={"size": size}, train={"parallel": {"kind": kind}})
    count = sum(budget.parameters.values())
    how = chosen(config.train.parallel, Ranks(0, ranks, per_node, control=object()), count)
    whole = {"alone": 1, "ddp": 1, "fsdp": ranks, "hsdp": per_node}[how] if ranks > 1 else 1
    assert shards_of(config, count, ranks, per_node) == whole


def test_more_ranks_hold_less_each() -> None:
    config, budget = planned("1.7B-mdlm-phase1", vocab=131_072)
    each = [memory_plan(config, budget.shape, 1.0, ranks, 8).total for ranks in (8, 32, 128)]
    assert each == sorted(each, reverse=True)
    fewer = config.model_copy(update={"train": config.train.model_copy(update={"checkpointing": "blocks"})})
    less, more = (memory_plan(one, budget.shape, 1.0, 32, 8).activations for one in (fewer, config))
    assert less < more / 5


def test_the_gpu_s_study_has_heads_of_64_and_reads_no_text_three_times(tmp_path: Path) -> None:
    """Its sizes are spelled out, so each must be the size that it is called; the corpus has 29 M tokens."""
    study = grid("books-gpu", words(tmp_path / "bpe.json", 4096))
    called = {"0.6M": 0.59e6, "1M": 0.98e6, "2.2M": 2.21e6, "4M": 3.93e6, "8.6M": 8.6e6, "16M": 15.9e6}
    for run in study.runs:
        shape, name = run.budget.shape, run.name.removeprefix(f"{run.arm}-").partition("-")[0]
        assert shape.width // shape.heads == 64 and shape.block_weights == pytest.approx(called[name], rel=0.01)
        assert run.budget.tokens < 2 * 29e6 and run.budget.steps > 10, run.name
    assert {run.config.budget.flops for run in study.runs} == {1e12, 5e12, 2e13, 1e14, 4e14, 1.6e15}
    paired = {
        arm: {run.config.seed for run in study.runs if run.arm == arm and "4M-4e14" in run.name}
        for arm in ("mdlm", "mdlm-nelbo")
    }
    assert paired == {"mdlm": {0, 1, 2, 3}, "mdlm-nelbo": {0, 1, 2, 3}}
