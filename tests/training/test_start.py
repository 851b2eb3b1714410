"""Training that starts from a model: its weights, its shape, its vocabulary; and the teacher of a distillation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from redraft.cli import main
from redraft.errors import UserError
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out, read_record
from redraft.training.trainer import Trainer
from tests.small_runs import corpus, tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


@pytest.fixture(scope="module")
def duo(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "duo"
    list(carry_out(open_run(tiny(source, family="duo"), folder), folder))
    return folder


def distillation(source: Path, start: Path, **over: Any) -> Any:
    family = {"name": "duo", "objective": "distillation", "rounds": 3}
    return tiny(source, family=family, train={"init_from": str(start), "ema": 0.9}, **over)


def test_training_starts_from_the_given_weights(source: Path, duo: Path, tmp_path: Path) -> None:
    """A step at a learning rate of nearly nothing leaves them where they were; the record says whose they were."""
    config = tiny(source, family="mdlm", budget={"steps": 1}, train={"init_from": str(duo), "lr": 1e-12})
    list(carry_out(open_run(config, tmp_path / "run"), tmp_path / "run"))
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (duo, tmp_path / "run"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    start = read_record(tmp_path / "run")["start"]
    assert start["folder"] == str(duo) and len(start["sha256"]) == 64


def test_teacher_is_the_student_as_it_was_when_the_round_began(source: Path, duo: Path, tmp_path: Path) -> None:
    trainer = Trainer.start(open_run(distillation(source, duo), tmp_path / "run"), tmp_path / "run")
    began: dict[int, list[torch.Tensor]] = {0: [p.clone() for p in trainer.network.parameters()]}
    for at in trainer.run():
        renewed = (at.step - 1) // 10 * 10  # 30 steps, 3 rounds
        assert trainer.teacher is not None
        assert all(torch.equal(a, b) for a, b in zip(trainer.teacher.parameters(), began[renewed], strict=True))
        began[at.step] = [p.detach().clone() for p in trainer.network.parameters()]


def test_a_distilled_model_is_a_duo_model(source: Path, duo: Path, tmp_path: Path) -> None:
    """No teacher in its files, and it loads and samples as any other."""
    from redraft import load

    list(carry_out(open_run(distillation(source, duo), tmp_path / "run"), tmp_path / "run"))
    assert load_file(tmp_path / "run" / "model.safetensors").keys() == load_file(duo / "model.safetensors").keys()
    assert len(load(tmp_path / "run").sample(n=2, length=12, steps=2)) == 2


def test_another_shape_or_vocabulary_is_refused_before_anything_is_written(
    source: Path, duo: Path, tmp_path: Path
) -> None:
    wider = distillation(source, duo, network={"width": 32})
    with pytest.raises(UserError, match="its width is 16, this run's 32"):
        open_run(wider, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    nowhere = tiny(source, train={"init_from": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="no such model folder"):
        open_run(nowhere, tmp_path / "run")


def test_damaged_weights_are_refused_before_anything_is_written(source: Path, duo: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(duo, tmp_path / "damaged") / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    with pytest.raises(UserError, match="does not hold this model's weights"):
        open_run(tiny(source, family="duo", train={"init_from": str(tmp_path / "damaged")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_distillation_without_a_teacher_of_its_family_is_refused(source: Path, duo: Path, tmp_path: Path) -> None:
    """Fresh student and teacher agree from the start: the loss would be zero for the whole budget."""
    family = {"name": "duo", "objective": "distillation", "rounds": 3}
    with pytest.raises(UserError, match="learns from a trained model: give it by --from"):
        open_run(tiny(source, family=family), tmp_path / "run")
    list(carry_out(open_run(tiny(source, family="mdlm"), tmp_path / "mdlm"), tmp_path / "mdlm"))
    with pytest.raises(UserError, match=r"needs a teacher of family 'duo': .* is of family 'mdlm'"):
        open_run(distillation(source, tmp_path / "mdlm"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_needs_its_start_only_to_start(source: Path, duo: Path, tmp_path: Path) -> None:
    """Interrupted, it continues, and finished, it opens, though the folder that it started from is gone."""
    given = shutil.copytree(duo, tmp_path / "given")
    config = distillation(source, given)
    setup = open_run(config, tmp_path / "run")
    trainer = Trainer.start(setup, tmp_path / "run", dict(load_file(given / "model.safetensors")))
    for at in trainer.run():
        if at.step == 5:
            trainer.save(tmp_path / "run")
            break
    shutil.rmtree(given)
    list(carry_out(open_run(config, tmp_path / "run"), tmp_path / "run"))
    assert list(carry_out(open_run(config, tmp_path / "run"), tmp_path / "run")) == []
    list(carry_out(open_run(distillation(source, duo), tmp_path / "whole"), tmp_path / "whole"))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


def test_size_beside_a_given_network_is_refused(
    source: Path, duo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--from` brings the network: a size beside it would be ignored."""
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--into", str(tmp_path / "run"), "--from", str(duo), "--size", "170M", "--steps", "2"])
    assert "give either size (here 170M) or" in capsys.readouterr().err


def test_from_takes_over_network_family_and_tokens(source: Path, duo: Path, tmp_path: Path) -> None:
    arguments = ["train", "--into", str(tmp_path / "run"), "--from", str(duo), "--family.objective", "curriculum"]
    arguments += ["--data", str(source), "--steps", "2", "--train.batch", "2", "--evaluate.rows", "4", "--json"]
    assert main(arguments) in (0, None)
    record = read_record(tmp_path / "run")
    assert (record["family"], record["options"]["objective"], record["length"]) == ("duo", "curriculum", 16)
