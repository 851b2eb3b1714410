"""What version 0.1.0 left on disks still serves: runs, an interrupted run, a study, an exported folder (tests/fixtures)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import redraft
from redraft.cli import main
from redraft.config import RunConfig, read_toml, validated
from redraft.errors import UserError
from redraft.frontier.pareto import load_frontier
from redraft.registry import RENAMED, SAMPLERS, find
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out
from redraft.scaling.fit import fit
from redraft.scaling.records import load_points

OLD = Path(__file__).parent / "fixtures" / "v0.1.0"
KNOWN = json.loads((OLD / "known.json").read_text())


@pytest.mark.parametrize("name", KNOWN)
def test_a_model_predicts_scores_and_writes_what_it_did(name: str) -> None:
    """Numbers of float32 with five decimals: half of the last, and rounding."""
    model, known = redraft.load(OLD / "runs" / name), KNOWN[name]
    log_p = model.log_p(torch.tensor([list(b"the quick brown ")]))[0, [0, 7], 96:104]
    assert torch.allclose(log_p.double(), torch.tensor(known["log_p"]).double(), atol=2e-5)
    assert model.score("the quick brown fox")[0].nats == pytest.approx(known["score"], rel=1e-5)
    steps = {} if name == "ar" else {"steps": 4}
    assert model.sample("the", n=1, length=16, seed=1, **steps) == known["sample"]


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(OLD / "runs" / "interrupted", tmp_path / "run")
    shutil.copy(OLD / "t.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    config = validated(RunConfig, read_toml(tmp_path / "run" / "config.toml"))
    steps = [record.step for record in carry_out(open_run(config, tmp_path / "run"), tmp_path / "run", "mdlm")]
    assert steps == [12]
    assert json.loads((tmp_path / "run" / "record.json").read_text())["steps"] == 12


def test_a_study_is_done_fits_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(OLD / "study", tmp_path / "study")
    main(["study", "status", str(tmp_path / "study"), "--json"])
    assert {row["state"] for row in json.loads(capsys.readouterr().out)} == {"done"}
    assert set(fit(load_points(tmp_path / "study"), resamples=40).families) == {"ar", "mdlm"}
    found = load_frontier(tmp_path / "study")
    assert found and {place.speed.family for place in found.places} == {"ar", "mdlm"}


def test_an_exported_folder_still_loads_and_agrees_with_its_run() -> None:
    from transformers import AutoModelForMaskedLM

    ids = torch.tensor([list(b"the quick ") + [257] * 6])
    own = redraft.load(OLD / "runs" / "mdlm").log_p(ids)[:, 10:]
    foreign = AutoModelForMaskedLM.from_pretrained(OLD / "transformers", trust_remote_code=True)(ids).logits[:, 10:]
    assert torch.allclose(foreign[..., :257].log_softmax(-1), own, atol=2e-5)


def test_keys_and_samplers_of_that_version_load_under_their_new_names() -> None:
    old = {
        "family": {"name": "duo", "until": 0.25, "rivals": 2},
        "network": {"depth": 1, "heads": 1, "width": 8, "hidden": 24},
        "data": {"drop": 0.0, "short": 0.5, "documents": "within"},
        "train": {"start": "folder", "transfer": {"width": 8, "depth": 2}},
    }
    now = validated(RunConfig, old)
    assert now.family.options["curriculum_end"] == 0.25 and now.family.options["top_k"] == 2
    assert now.network.mlp_width == 24 and now.data.random_length == 0.5 and now.data.intra_document_mask
    assert now.train.init_from == "folder" and now.train.completep and now.train.completep.depth == 2
    assert validated(RunConfig, now.model_dump()) == now
    with pytest.raises(UserError, match="drop is called cfg_dropout now, and both are given"):
        validated(RunConfig, {"data": {"drop": 0.1, "cfg_dropout": 0.1}})
    for name, new in RENAMED.items():
        assert find("sampler", SAMPLERS, name) is SAMPLERS[new]
