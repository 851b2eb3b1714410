"""Fine-tuning on prompts and completions: every family, rows of different lengths, killed anywhere, the same bits."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from redraft.cli import main
from redraft.config import RunConfig, dump_toml
from redraft.errors import UserError
from redraft.families.base import full_view
from redraft.hub.folder import load_model
from redraft.network.transformer import Transformer
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.registry import FAMILIES
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out, read_record
from redraft.training.journal import read_journal
from redraft.training.loader import as_batch
from redraft.training.setup import held_out, set_up
from redraft.training.trainer import Trainer
from redraft.types import Batch
from tests.rounding import CLOSE, in_float64, logits_apart
from tests.small_runs import corpus, tiny

TELLING = ("timing", "machine", "versions", "git", "name")
EVERY = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty sums, their completions of one to four bytes and an end."""
    path, rng = tmp_path_factory.mktemp("pairs") / "pairs.jsonl", random.Random(0)
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in ((rng.randint(0, 999), i) for i in range(60))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


@pytest.fixture(scope="module")
def start(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to start from: any family's will do, for all have the same network."""
    folder = tmp_path_factory.mktemp("start") / "mdlm"
    finish(tiny(text, budget={"steps": 10}), folder)
    return folder


def finish(config: RunConfig, folder: Path) -> dict[str, Any]:
    for _ in carry_out(open_run(config, folder), folder):
        pass
    return read_record(folder)


def sft(pairs: Path, **over: Any) -> RunConfig:
    data = {"cfg_dropout": 0.3, **over.pop("data", {})}
    return tiny(pairs, **{"budget": {"steps": 12}, "data": data, **over})


def trainer_of(config: RunConfig, folder: Path) -> Trainer:
    return Trainer.start(open_run(config, folder), folder)


def interrupted(config: RunConfig, folder: Path, stop: int, given: Any = None) -> None:
    """Trained up to `stop`, saved where the command would have saved, and left there."""
    trainer = Trainer.start(open_run(config, folder), folder, given)
    for at in trainer.run():
        if at.step % config.train.save_every == 0:
            trainer.save(folder)
        if at.step == stop:
            return


def same(one: Path, other: Path) -> bool:
    records = [{k: v for k, v in read_record(f).items() if k not in TELLING} for f in (one, other)]
    return records[0] == records[1] and weights_of(one) == weights_of(other)


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@EVERY
def test_abandoned_run_continues_to_the_same_bits(family: str, pairs: Path, start: Path, tmp_path: Path) -> None:
    config = sft(pairs, family=family, train={"ema": 0.9, "init_from": str(start)})
    finish(config, tmp_path / "whole")
    for stop in (1, 10) if family == "mdlm" else (10,):  # before the first checkpoint, and after one
        interrupted(config, tmp_path / str(stop), stop, dict(load_file(start / "model.safetensors")))
        finish(config, tmp_path / str(stop))
        assert same(tmp_path / str(stop), tmp_path / "whole")


@EVERY
def test_loss_does_not_depend_on_accumulation(family: str, pairs: Path, tmp_path: Path) -> None:
    """Micro-batches have other paddings and other numbers of scored tokens; only sums are reordered; in float64."""
    losses = []
    for parts in (1, 2, 4):
        train = {"accumulate": parts, "precision": "float64"}
        config = sft(pairs, family=family, budget={"steps": 6}, train=train)
        trainer = trainer_of(config, tmp_path / str(parts))
        losses.append(torch.stack([step.loss for step in trainer.run()]))
    assert torch.allclose(losses[0], losses[1], **CLOSE) and torch.allclose(losses[0], losses[2], **CLOSE)


def test_loss_is_the_mean_over_the_steps_scored_tokens(pairs: Path, tmp_path: Path) -> None:
    """Row by row, each alone and unpadded: nats added up, over the number of scored tokens."""
    trainer = trainer_of(sft(pairs, family="ar", train={"accumulate": 2, "precision": "float64"}), tmp_path / "run")
    nats, scored, rows = 0.0, 0, trainer.setup.reader.step(0)
    assert rows.lengths is not None and len(set(rows.lengths.tolist())) > 1
    for row in range(4):
        loss = trainer.loss(as_batch(rows, slice(row, row + 1), "cpu"), 0.0)
        nats, scored = nats + float(loss.nats.detach().sum()), scored + int(loss.scored.sum())
    assert trainer.descend(0).item() == pytest.approx(nats / scored, rel=1e-9)


def test_prompts_are_given_whole_or_blank(pairs: Path, tmp_path: Path) -> None:
    """Which are blank is a function of seed and sample; completions and padding are as they were."""
    plain, dropped = (set_up(sft(pairs, data={"cfg_dropout": p})).reader for p in (0.0, 0.3))
    chance = counter_rng.uniform(Key.of(0).fold_in("prompt"), torch.arange(48))
    for step in range(12):
        before, after = plain.step(step), dropped.step(step)
        assert before.lengths is not None and np.array_equal(before.lengths, after.lengths)
        for row, index in enumerate(before.index.tolist()):
            prompt = ~before.scored[row] & (np.arange(before.tokens.shape[1]) < before.lengths[row])
            blank = np.where(prompt, 257, before.tokens[row])
            assert np.array_equal(after.tokens[row], blank if chance[index] < 0.3 else before.tokens[row])
    assert 0 < (chance < 0.3).sum() < 48


def test_validation_is_nats_per_scored_token_of_the_held_out_file(pairs: Path, tmp_path: Path) -> None:
    valid = tmp_path / "valid.jsonl"
    valid.write_text(
        "".join(json.dumps({"prompt": f"{i}+0=", "completion": "x" * (1 + i % 7)}) + "\n" for i in range(20))
    )
    config = sft(
        pairs, family="ar", data={"validation": str(valid), "cfg_dropout": 0.0}, evaluate={"rows": 20, "batch": 6}
    )
    record, family = finish(config, tmp_path / "run"), set_up(config).family
    _, network, tokenizer = load_model(tmp_path / "run", torch.device("cpu"))
    in_float64(network)
    nats, scored, largest = 0.0, 0, 0.0
    with torch.no_grad():
        for i in range(20):
            prompt, rest = tokenizer.encode(f"{i}+0="), [*tokenizer.encode("x" * (1 + i % 7)), tokenizer.eos]
            tokens = torch.tensor([[*prompt, *rest]])
            where = torch.arange(tokens.shape[1])[None] >= len(prompt)
            one = family.nelbo(network, Batch(tokens, where, torch.zeros(1).long()), key=Key.of(0))
            nats, scored = nats + float(one.nats.sum()), scored + len(rest)
            largest = max(largest, float(family.log_p(network, tokens, None, None).abs().max()))
    off = 2 * logits_apart(network.shape, 16, largest)  # the run evaluates in float32
    assert record["loss"] == pytest.approx(nats / scored, abs=off)
    assert record["loss_kind"] == "exact" and record["windows"] == 20 and record["loss_sampling_se"] > 0
    assert record["bits_per_byte"] == pytest.approx(nats / np.log(2) / (scored - 20), abs=2 * off)


def test_budget_counts_tokens_read_and_no_padding(pairs: Path, tmp_path: Path) -> None:
    config = sft(pairs, data={"length": 24})
    record, setup = finish(config, tmp_path / "run"), open_run(config, tmp_path / "run")
    read = sum(int(setup.reader.step(step).lengths.sum()) for step in range(12))  # type: ignore[union-attr]
    assert record["tokens"] == setup.budget.tokens == read < 12 * 4 * 24
    assert read_journal(tmp_path / "run" / "journal.jsonl")[-1].tokens == read
    assert record["flops_by_convention"]["6ND"] == pytest.approx(
        6 * read * (record["params"] - record["parameters"]["head"])
    )
    by_tokens = set_up(sft(pairs, budget={"steps": None, "tokens": 500.0})).budget
    assert by_tokens.steps == 500 // by_tokens.tokens_per_step
    assert (
        record["data"]["format"] == "prompts"
        and record["data"]["examples"] + record["data"]["validation_examples"] == 60
    )


@EVERY
def test_fine_tuning_learns_the_completions_from_their_prompts(family: str, tmp_path: Path) -> None:
    """One of two bytes, told by the prompt alone: without it a byte costs log 2 = 0.69 nats."""
    source = tmp_path / "two.jsonl"
    rows = [{"prompt": p, "completion": c} for p, c in (("ask a", "u"), ("ask b", "w"))] * 20
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    over: dict[str, Any] = {"data": {"eos": "none"}, "budget": {"steps": 150}, "train": {"lr": 1e-2, "batch": 8}}
    assert finish(tiny(source, family=family, **over), tmp_path / "run")["loss"] < 0.1


def test_text_of_random_shorter_lengths(text: Path, tmp_path: Path) -> None:
    """A share of the steps; which, and how short, is a function of the step; the loss is a mean over what is left."""
    config = tiny(text, family="ar", data={"random_length": 0.4}, train={"accumulate": 2, "precision": "float64"})
    whole, setup = set_up(tiny(text, family="ar")), set_up(config)
    kept = [setup.reader.step(step).tokens.shape[1] for step in range(200)]
    chance = counter_rng.uniform(Key.of(0).fold_in("short"), torch.arange(200), torch.zeros(200))
    assert [n < 16 for n in kept] == [bool(c < 0.4) and n < 16 for c, n in zip(chance, kept, strict=True)]
    assert set(kept) == set(range(1, 17)) and 0 < (chance < 0.4).sum() < 200
    step = next(i for i, n in enumerate(kept) if 1 < n < 16)
    assert np.array_equal(setup.reader.step(step).tokens, whole.reader.step(step).tokens[:, : kept[step]])
    trainer = trainer_of(config, tmp_path / "run")
    with torch.no_grad():
        nats = trainer.loss(as_batch(setup.reader.step(step), slice(0, 4), "cpu"), 0.0)
    assert trainer.descend(step).item() == pytest.approx(float(nats.mean()), rel=1e-9)
    assert setup.budget.tokens_per_step == round(4 * (16 * 0.6 + 0.4 * 17 / 2))


def lora(**over: Any) -> dict[str, Any]:
    return {"lora": {"rank": 2, "targets": ["qkv", "out", "up", "down"], **over}}


@pytest.fixture
def _peft() -> None:
    pytest.importorskip("peft", reason="LoRA needs peft")


@pytest.mark.usefixtures("_peft")
@EVERY
def test_adapters_resume_to_the_same_bits(family: str, pairs: Path, start: Path, tmp_path: Path) -> None:
    """Without the folder that the run started from: the state holds weights and adapters."""
    config = sft(pairs, family=family, train={"init_from": str(start), "ema": 0.9, **lora()})
    finish(config, tmp_path / "whole")
    interrupted(config, tmp_path / "broken", 5, dict(load_file(start / "model.safetensors")))
    finish(config, tmp_path / "broken")
    assert same(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.usefixtures("_peft")
def test_only_what_adapters_add_changes(pairs: Path, text: Path, tmp_path: Path) -> None:
    """The saved model is an ordinary one: the old weights, and in the targets a difference of the adapters' rank."""
    deep, start = {"depth": 2}, tmp_path / "start"
    finish(tiny(text, network=deep, budget={"steps": 10}), start)
    train = {"init_from": str(start), "lr": 1e-2, **lora(targets=["qkv", "up"])}
    finish(sft(pairs, network=deep, train=train), tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "run"))
    assert before.keys() == after.keys()
    for name in before:
        if name.endswith(("qkv.weight", "up.weight")):
            assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) == 2
        else:
            assert torch.equal(after[name], before[name])


@pytest.mark.usefixtures("_peft")
def test_merged_network_is_the_adapted_one(pairs: Path, start: Path, tmp_path: Path) -> None:
    """Adapted in float64, merged in it, and kept in float32."""
    train = {"init_from": str(start), "lr": 1e-2, "precision": "float64", **lora()}
    given = dict(load_file(start / "model.safetensors"))
    trainer = Trainer.start(open_run(sft(pairs, train=train), tmp_path / "run"), tmp_path / "run", given)
    for _ in trainer.run():
        pass
    batch = as_batch(
        held_out(trainer.setup.corpus, trainer.setup.config.data, trainer.setup.tokenizer.eos, 3), slice(0, 3), "cpu"
    )
    with torch.no_grad():
        adapted = trainer.loss(batch, 0.0).nats
        merged = trainer.final_weights()
        largest = merged.head(merged.trunk(full_view(batch.tokens))).log_softmax(-1).abs().max()
        off = 2 * logits_apart(merged.shape, batch.tokens.shape[1], float(largest))
        assert (trainer.loss(batch, 0.0).nats - adapted).abs().max() < off
    assert {n for n, _ in merged.named_parameters()} == {n for n, _ in Transformer(merged.shape).named_parameters()}


@pytest.mark.usefixtures("_peft")
def test_adapters_that_cannot_be_are_refused_before_anything_is_written(
    pairs: Path, start: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"a dit block has no matrix 'gate'; its matrices: qkv, out, up, down"):
        open_run(sft(pairs, train={"init_from": str(start), **lora(targets=["gate"])}), tmp_path / "run")
    with pytest.raises(UserError, match=r"adapts a trained model: give it by --from"):
        open_run(sft(pairs, train=lora()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_peft")
@pytest.mark.parametrize("family", ["ar", "mdlm"])
def test_llama_blocks_take_adapters(family: str, pairs: Path, text: Path, tmp_path: Path) -> None:
    network = {"block": "llama", "mlp_width": 24}
    finish(tiny(text, family=family, network=network, budget={"steps": 2}), tmp_path / "start")
    targets = ["qkv", "out", "gate", "up", "down"]
    over = {"init_from": str(tmp_path / "start"), **lora(targets=targets)}
    finish(sft(pairs, family=family, network=network, train=over), tmp_path / "run")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "run"))
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed == set(targets)


@pytest.mark.usefixtures("_peft")
def test_a_teacher_on_prompts_with_adapters_resumes_to_the_same_bits(pairs: Path, text: Path, tmp_path: Path) -> None:
    """Distillation of Duo: two padded networks, both adapted, the teacher renewed at steps 0 and 6."""
    finish(tiny(text, family="duo", budget={"steps": 10}), tmp_path / "start")
    family = {"name": "duo", "objective": "distillation", "rounds": 2}
    config = sft(pairs, family=family, train={"init_from": str(tmp_path / "start"), **lora()})
    finish(config, tmp_path / "whole")
    interrupted(config, tmp_path / "broken", 9, dict(load_file(tmp_path / "start" / "model.safetensors")))
    finish(config, tmp_path / "broken")
    assert same(tmp_path / "broken", tmp_path / "whole")


def test_settings_of_another_format_are_refused(pairs: Path, text: Path) -> None:
    with pytest.raises(UserError, match=r"data\.cfg_dropout blanks prompts"):
        set_up(tiny(text, data={"cfg_dropout": 0.1}))
    with pytest.raises(UserError, match=r"data\.random_length cuts rows of text"):
        set_up(tiny(pairs, data={"random_length": 0.1}))


def test_the_same_command_opens_its_folder_again(pairs: Path, tmp_path: Path) -> None:
    """With the format left to be found, and with the recipe that the run wrote."""
    config = sft(pairs)
    assert config.data.format == "auto"
    stored = open_run(config, tmp_path / "run").config
    assert stored.data.format == "prompts" and open_run(stored, tmp_path / "run").config == stored
    assert open_run(config, tmp_path / "run").config == stored and 'format = "prompts"' in dump_toml(stored)


def test_fine_tune_from_the_command_line(
    pairs: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--into", str(tmp_path / "run"), "--from", str(start), "--data", str(pairs), "--steps", "3"]
    main([*arguments, "--train.batch", "4", "--evaluate.rows", "4", "--data.eos", "fill", "--data.cfg_dropout", "0.1"])
    said = capsys.readouterr().out
    assert "to train on (0 longer than 16 tokens skipped, 0 truncated)" in said and "0.1 of the prompts blanked" in said
    record = read_record(tmp_path / "run")
    assert record["tokens"] == 3 * 4 * 16 and record["start"]["folder"] == str(start)
