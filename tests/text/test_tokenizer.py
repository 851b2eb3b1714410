"""Laws of tokenizers: text comes back, ids stay inside, cutting long text changes nothing, a saved one is the same."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import redraft.text.tokenizers.tokenizer as module
from redraft.errors import UserError
from redraft.text.tokenizers.tokenizer import Tokenizer, load_tokenizer

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
# what separates the libraries: spaces at the ends, line ends of all kinds, and what looks like special tokens
HARD = st.lists(
    st.sampled_from(["a", " ", "\n", "\r\n", "\t", "word.", "</s>", "<|endoftext|>", "é", "▁"]), max_size=30
)
LAWS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@LAWS
@given(text=TEXTS | HARD.map("".join))
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    if tokenizer.name.startswith("tokenizer.model"):
        text = text.replace("▁", "_").replace("\0", "")  # sentencepiece writes spaces as the one and drops the other
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64 and ids.ndim == 1
    assert tokenizer.decode(ids) == text


@LAWS
@given(text=TEXTS | HARD.map("".join))
def test_ids_are_text_and_never_the_end_of_a_document(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ((ids >= 0) & (ids < tokenizer.size)).all()
    assert tokenizer.eos not in ids.tolist()


def test_ends_of_documents_and_ids_of_the_model_leave_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("left right").tolist()
    assert tokenizer.decode([*ids, tokenizer.eos, tokenizer.size, tokenizer.size + 7, -1]) == "left right"
    assert tokenizer.decode([]) == ""


def test_a_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new")
    again = load_tokenizer(tmp_path / "new")
    text = " Two spaces:  \n\nand a line — é."
    assert (again.name, again.size, again.eos) == (tokenizer.name, tokenizer.size, tokenizer.eos)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()


@LAWS
@given(pieces=HARD.map(lambda words: " a".join(words) * 3), size=st.integers(1, 40))
def test_cutting_changes_no_token(tokenizer: Tokenizer, pieces: str, size: int) -> None:
    whole = tokenizer.encode(pieces).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", size)
        assert tokenizer.encode(pieces).tolist() == whole


def test_cutting_changes_no_token_of_a_book(data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    with lzma.open(data / "books" / "valid.jsonl.xz") as file:
        text = "".join(json.loads(line)["text"][:80_000] for line, _ in zip(file, range(3)))
    monkeypatch.setattr(module, "_PIECE", len(text))
    whole = tokenizer.encode(text)
    monkeypatch.setattr(module, "_PIECE", 1000)
    cuts = sum(1 for _ in tokenizer._cuts(text))
    assert cuts > len(text) / 1100
    assert np.array_equal(tokenizer.encode(text), whole)


def test_a_tokenizer_is_shown_by_its_kind_size_and_fingerprint(tokenizer: Tokenizer) -> None:
    kind = tokenizer.name.partition(":")[0]
    assert repr(tokenizer) == f"<{kind} tokenizer, {tokenizer.size} ids, fingerprint {tokenizer.fingerprint[:8]}>"


@pytest.mark.parametrize("name", ["vocab.bpe", "encoder.json"])
def test_half_of_gpt2_names_the_folder_of_both(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("#version: 0.2\n" if name == "vocab.bpe" else '{"a": 0}')
    with pytest.raises(UserError, match=r"give the folder that holds encoder\.json and vocab\.bpe") as told:
        load_tokenizer(tmp_path / name)
    assert str(tmp_path) in str(told.value)


def test_gpt2_is_gpt2(data: Path) -> None:
    gpt2 = load_tokenizer(data / "tokenizers" / "gpt2")
    assert (gpt2.size, gpt2.eos) == (50257, 50256)
    assert gpt2.encode("Hello world, it's\n\n me").tolist() == [15496, 995, 11, 340, 338, 628, 502]


def test_sentencepiece_models_end_documents_with_two(data: Path) -> None:
    llama = load_tokenizer(data / "tokenizers" / "llama2_32k" / "tinyllama_tokenizer.model")
    assert (llama.size, llama.eos) == (32000, 2)
    assert llama.encode("Hello world").tolist() == [15043, 3186]


def test_a_vocabulary_without_an_end_gets_one_and_ignores_stored_truncation(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, pre_tokenizers

    engine = Engine(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.enable_truncation(2)
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.size, tokenizer.eos) == (4, 3)
    assert tokenizer.encode("a b a b").tolist() == [0, 1, 0, 1]


def test_what_is_no_tokenizer_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "noise.model").write_bytes(b"\x01\x02")
    (tmp_path / "empty").mkdir()
    for spec in ("none.json", tmp_path / "tokenizer.json", tmp_path / "noise.model", tmp_path / "empty"):
        with pytest.raises(UserError, match=r"a tokenizer is 'bytes', a tokenizer\.json") as caught:
            load_tokenizer(spec)
        assert Path(spec).name in str(caught.value) and "\n" not in str(caught.value)
