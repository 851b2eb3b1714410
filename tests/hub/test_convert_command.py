"""`redraft convert`, and what its folder is good for on the command line: training, scoring, sampling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import redraft
from redraft.cli import main
from redraft.text.tokenizers.tokenizer import load_tokenizer
from tests.hub import foreign
from tests.hub.test_convert import BYTES, DIT, apart, golden, sample_of
from tests.small_runs import corpus

FAST = ["--length", "16", "--data.length", "16", "--train.batch", "4", "--train.threads", "1", "--train.device", "cpu",
        "--train.precision", "float32", "--evaluate.rows", "4", "--evaluate.draws", "1", "--evaluate.batch", "4"]  # fmt: skip


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.err.count("\n") == 1 and not captured.out
    return captured.err


def test_assumptions_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = sample_of("ar", tmp_path)
    main(["convert", str(source), str(tmp_path / "out"), "--tokenizer", "bytes"])
    said = capsys.readouterr().out
    assert "assumed: texts are taken to begin with id 256" in said and "not verified" in said
    assert "family ar, 2 blocks, 2 heads, width 32, 257 ids" in said


def test_json_holds_everything_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, weights = sample_of("mdlm", tmp_path), foreign.dit_weights(rows=BYTES + 1)
    stored = golden(tmp_path / "g.safetensors", weights)
    main(["convert", str(source), str(tmp_path / "out"), "--tokenizer", "bytes", "--verify", str(stored), "--json"])
    table = json.loads(capsys.readouterr().out)
    assert table["family"] == "mdlm" and table["shape"]["vocab"] == BYTES
    assert table["difference"] < apart(stored, tmp_path / "out")


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(sample_of("mdlm", tmp_path)), str(tmp_path / "out")
    base = ["convert", source, out, "--tokenizer", "bytes"]
    assert "unknown format 'dit-lightening'" in refused([*base, "--from", "dit-lightening"], capsys)
    assert "--mask must be an id or none" in refused([*base, "--mask", "x"], capsys)
    assert "is no id of the checkpoint" in refused([*base, "--mask", "4000"], capsys)
    assert "unknown family 'mdml'" in refused([*base, "--family", "mdml"], capsys)
    assert "unknown option of family mdlm" in refused([*base, "--family.alpha_0", "1"], capsys)
    assert "no such checkpoint" in refused(["convert", str(tmp_path / "nowhere"), out], capsys)
    assert "needs a [MASK]" in refused([*base, "--mask", "none"], capsys)
    assert "no tokenizer 'someone/something'" in refused(
        ["convert", source, out, "--tokenizer", "someone/something"], capsys
    )
    assert not (tmp_path / "out").exists()


def test_overridden_family_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bare safetensors file says nothing of itself."""
    save_file(foreign.dit_weights(rows=BYTES + 1), tmp_path / "x.safetensors")
    base = ["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "out"), "--tokenizer", "bytes"]
    assert "give --family" in refused(base, capsys)
    base += ["--family", "esolm", "--family.alpha_0", "0.5"]
    assert "give --heads" in refused(base, capsys)
    main([*base, "--heads", "2", "--length", "24"])
    model = redraft.load(tmp_path / "out", "cpu")
    assert model.family.name == "esolm" and model.family.alpha_0 == 0.5 and model.length == 24  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["ar", "mdlm", "duo", "esolm", "bd3lm", "sedd", "d3pm", "gidd", "smdm", "llada"])
def test_training_goes_on_from_a_converted_model(
    name: str, prose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = ["--heads", "2"] if name == "smdm" else []
    main(["convert", str(sample_of(name, tmp_path)), str(tmp_path / "out"), "--tokenizer", "bytes", *heads])
    before = redraft.load(tmp_path / "out", "cpu")
    main(["train", "--from", str(tmp_path / "out"), "--into", str(tmp_path / "run"), "--data", str(prose), "--steps", "2",
          "--train.lr", "1e-4", *FAST[2:]])  # fmt: skip
    after = redraft.load(tmp_path / "run", "cpu")
    assert after.family.name == before.family.name and after.network.shape == before.network.shape
    pairs = zip(after.network.parameters(), before.network.parameters(), strict=True)
    assert 0 < max(float((p - q).detach().abs().max()) for p, q in pairs) < 1e-2
    capsys.readouterr()
    main(["eval", str(tmp_path / "run"), "--rows", "4", "--draws", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["nats"] > 0
    steps = [] if name == "ar" else ["--steps", "4"]  # left to right, every token is a step
    main(["sample", str(tmp_path / "out"), "--prompt", "the", "--length", "12", *steps, "--json"])
    assert len(json.loads(capsys.readouterr().out)["texts"]) == 1


def test_training_keeps_another_rotary_base(prose: Path, tmp_path: Path) -> None:
    weights = foreign.llada_weights(BYTES)
    source = foreign.save_folder(tmp_path / "llada", weights, foreign.llada_config(weights, mask_token_id=100))
    main(["convert", str(source), str(tmp_path / "out"), "--tokenizer", "bytes"])
    main(["train", "--from", str(tmp_path / "out"), "--into", str(tmp_path / "run"), "--data", str(prose), "--steps", "1",
          *FAST[2:]])  # fmt: skip
    assert redraft.load(tmp_path / "run", "cpu").network.shape.theta == 500000.0


def test_sentencepiece_and_gpt2_are_filled_up(data: Path, tmp_path: Path) -> None:
    """Real tokenizers under Duo's vocabularies: one id more than they have, and the same ids for every text."""
    for kind, size in (("gpt2", 50257), ("llama2_32k", 32000)):
        folder = data / "tokenizers" / kind
        weights = foreign.dit_weights(depth=1, width=8, rows=size + 1, cond=4)
        source = foreign.save_lightning(
            tmp_path / f"{kind}.ckpt", weights, foreign.hydra(DIT["duo"][0], {"n_heads": 1})
        )
        main(["convert", str(source), str(tmp_path / kind), "--tokenizer", str(folder)])
        model, before = redraft.load(tmp_path / kind, "cpu"), load_tokenizer(folder)
        assert model.tokenizer.size == size + 1 == model.family.vocab and model.tokenizer.eos == before.eos
        text = "It was the best of times,\n\n  it was 1859: naïve façades, 東京 <|endoftext|> <|unused_32000|>"
        assert model.tokenizer.encode(text).tolist() == before.encode(text).tolist()
        assert model.tokenizer.decode(before.encode(text)) == before.decode(before.encode(text))


def test_public_vocabularies_place_their_masks(data: Path, tmp_path: Path) -> None:
    """GPT-2's 50258 rows: [MASK] is the last and becomes the spare row; SMDM's 32001: so does theirs."""
    weights = foreign.dit_weights(depth=1, width=8, rows=50258, cond=4)
    source = foreign.save_lightning(tmp_path / "a.ckpt", weights, foreign.hydra(DIT["mdlm"][0], {"n_heads": 1}))
    main(["convert", str(source), str(tmp_path / "a"), "--tokenizer", str(data / "tokenizers" / "gpt2")])
    model = redraft.load(tmp_path / "a", "cpu")
    assert model.family.vocab == 50257 and torch.equal(model.network.embedding, weights["vocab_embed.embedding"])
    save_file(foreign.smdm_weights(32001, 32000, depth=1, width=8, heads=1, groups=1), tmp_path / "x.safetensors")
    main(["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "b"), "--heads", "1", "--tokenizer",
          str(data / "tokenizers" / "llama2_32k")])  # fmt: skip
    assert redraft.load(tmp_path / "b", "cpu").family.vocab == 32000
