"""The card says what the record says, keeps quiet where it says nothing, and tells how to load the folder it lies in."""

from __future__ import annotations

from pathlib import Path

import pytest

import redraft
from redraft.hub.export.card import card, facts
from redraft.hub.export.export import TARGETS, export
from redraft.text.tokenizers.tokenizer import load_tokenizer
from tests.hub.models import folder

RECORD = {
    "options": {"schedule": "cosine"}, "seed": 3, "tokens": 1_500_000, "steps": 100, "batch": 8, "flops": 2.5e12,
    "convention": "blocks+head", "loss": 3.14159, "loss_se": 0.0123, "loss_sampling_se": 0.0456, "loss_kind": "bound",
    "bits_per_byte": 1.5, "windows": 64, "data": {"source": "books|1", "sha256": "abc", "epochs": 0.25},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> redraft.Model:
    return redraft.load(folder(tmp_path_factory.mktemp("card"), "mdlm", "dit", {"schedule": "cosine"}, RECORD))


def test_numbers_stand_beside_their_conventions_and_errors(model: redraft.Model) -> None:
    said = facts(model)
    assert said["Loss"] == (
        "3.1416 nats/token (an upper bound; Monte Carlo s.e. 0.0123; s.e. over windows 0.0456), 64 held-out windows"
    )
    assert said["Budget"] == "2.5e+12 FLOPs (counted as blocks+head), 1.5M tokens in 100 steps of 8 rows"
    assert said["Family"] == "mdlm (schedule cosine)"
    assert said["Network"] == "dit, 2 layers, 2 heads, width 16, hidden 40"
    assert said["Data"] == "books|1, sha256 abc, 0.25 epochs"


def test_an_exact_loss_is_called_exact(tmp_path: Path) -> None:
    record = RECORD | {"loss_kind": "exact", "loss_se": 0.0}
    said = facts(redraft.load(folder(tmp_path / "ar", "ar", "llama", {}, record)))
    assert said["Loss"] == "3.1416 nats/token (exact; s.e. over windows 0.0456), 64 held-out windows"


def test_what_the_record_does_not_say_is_left_out(tmp_path: Path) -> None:
    said = facts(redraft.load(folder(tmp_path / "bare", "duo", "dit")))
    assert set(said) == {"Family", "Network", "Parameters", "Tokenizer"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_card_has_the_hub_header_one_table_and_a_way_to_load(target: str, tmp_path: Path) -> None:
    ar = redraft.load(folder(tmp_path / "ar", "ar", "llama", {}, RECORD))
    text = card(ar, target)
    header, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert "- redraft" in header and "- ar" in header and "library_name: " in header
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(facts(ar)) and all(row.replace(r"\|", "").count("|") == 3 for row in rows)
    assert "## Load" in body and "{" not in body
    wanted = {"native": "redraft.load", "gguf": "model.gguf", "llama": "1 / (V + 1)", "hf": "1 / (V + 1)"}
    assert wanted.get(target, "trust_remote_code=True") in body


def test_code_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    for family, target in (("ar", "llama"), ("ar", "transformers"), ("mdlm", "transformers"), ("mdlm", "native")):
        into = export(
            folder(tmp_path / f"{family}-{target}", family, "llama"), target, tmp_path / f"{family}-{target}-out"
        )
        monkeypatch.chdir(into)
        code = (into / "README.md").read_text().split("```python\n")[1].split("```")[0]
        exec(compile(code, "README.md", "exec"), {})


def test_a_tokenizer_without_json_is_said(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog\n" * 50)
    for kind in ("unigram", "bpe"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "text"), model_prefix=str(tmp_path / kind), vocab_size=45, model_type=kind,
            normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, hard_vocab_limit=False,
        )  # fmt: skip
        tokenizer = load_tokenizer(tmp_path / f"{kind}.model")
        into = export(
            folder(tmp_path / f"{kind}-run", "ar", "llama", tokenizer=tokenizer), "llama", tmp_path / f"{kind}-out"
        )
        names = {path.name for path in into.iterdir()}
        assert ("tokenizer.model" in names) == (kind == "unigram") != ("tokenizer.json" in names)
        assert ("encode with the package sentencepiece" in (into / "README.md").read_text()) == (kind == "unigram")


@pytest.mark.parametrize("family", ["ar", "mdlm"])
def test_a_card_shows_the_way_that_runs_no_code_first_and_says_what_the_flag_means(family: str, tmp_path: Path) -> None:
    text = card(redraft.load(folder(tmp_path / family, family, "llama", {}, RECORD)), "transformers")
    assert text.index("redraft.load(") < text.index("trust_remote_code") < text.index("from_pretrained(")
    assert "lets\ntransformers run it" in text and "read these files first" in text
