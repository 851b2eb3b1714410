"""An exported tokenizer is ours: the same ids, the same text back, and the model's spare id as a special token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers

from redraft.errors import UserError
from redraft.hub.export.gguf import vocabulary_of
from redraft.hub.export.sentencepiece_model import BYTE, CONTROL, read_model
from redraft.hub.export.tokenizer_json import exported, sentencepiece
from redraft.text.tokenizers.tokenizer import Bytes, Tokenizer, load_tokenizer

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
LAWS = settings(max_examples=60, deadline=None)


def engine(tokenizer: Tokenizer, causal: bool = True) -> Any:
    return Engine.from_str(json.dumps(exported(tokenizer, causal, 8)["tokenizer.json"]))


BYTES_ENGINE = engine(Bytes())


@LAWS
@given(text=TEXTS)
def test_bytes_are_bytes(text: str) -> None:
    ids = BYTES_ENGINE.encode(text).ids
    assert ids == [257, *text.encode()]
    assert BYTES_ENGINE.decode(ids) == text


@pytest.mark.parametrize("name", ["gpt2", "llama2_32k", "mistral_v1_32k"])
def test_real_vocabularies_keep_their_ids(name: str, data: Path) -> None:
    tokenizer = load_tokenizer(data / "tokenizers" / name)
    theirs = engine(tokenizer)
    for text in ("", " ", "  a", "a  \n", "é😀\n\t 你好", "It's 3.14, don't\r\n panic!", "▁x", "\0"):
        ids = theirs.encode(text).ids
        assert ids == [tokenizer.size, *tokenizer.encode(text)]
        assert theirs.decode(ids) == tokenizer.decode(ids)


def test_bos_is_put_before_text_for_left_to_right_models_alone() -> None:
    assert BYTES_ENGINE.encode("a", "b").ids == [257, 97, 98]
    assert engine(Bytes(), causal=False).encode("a", "b").ids == [97, 98]
    assert exported(Bytes(), False, 8)["tokenizer_config.json"]["mask_token"] == "<|mask|>"


def test_the_spare_id_stands_where_the_model_has_it(tmp_path: Path) -> None:
    """A vocabulary with holes, no end of a document, and a token of the name that ours would have."""
    made = Engine(models.WordLevel({"a": 0, "<|begin|>": 7, "?": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.size, tokenizer.eos) == (9, 8)
    theirs = engine(tokenizer)
    assert theirs.encode("a b").ids == [9, 0, 2]
    assert (theirs.id_to_token(8), theirs.id_to_token(9)) == ("<|endoftext|>", "<|begin|>_")


def test_a_sentencepiece_model_is_read_as_its_library_reads_it(data: Path) -> None:
    library = pytest.importorskip("sentencepiece")
    path = data / "tokenizers" / "llama2_32k" / "tinyllama_tokenizer.model"
    spec, engine = read_model(path.read_bytes()), library.SentencePieceProcessor(model_file=str(path))
    assert len(spec.pieces) == engine.vocab_size() and spec.plain and spec.prefix
    for number in (0, 1, 2, 3, 258, 259, 5000, 31999):
        piece = spec.pieces[number]
        assert (piece.text, piece.score) == (engine.id_to_piece(number), engine.get_score(number))
        assert (piece.type == BYTE, piece.type == CONTROL) == (engine.is_byte(number), engine.is_control(number))


def test_gguf_names_every_id_once(data: Path, tmp_path: Path) -> None:
    for tokenizer in (Bytes(), *(load_tokenizer(data / "tokenizers" / name) for name in ("gpt2", "llama2_32k"))):
        said = vocabulary_of(tokenizer)
        assert len(said.tokens) == len(said.types) == len(set(said.tokens)) == tokenizer.size + 1
        assert said.types[tokenizer.size] == said.types[tokenizer.eos] == CONTROL
    assert vocabulary_of(load_tokenizer(data / "tokenizers" / "gpt2")).merges[0] == "Ġ t"
    assert sentencepiece(load_tokenizer(data / "tokenizers" / "llama2_32k")).pieces[29871].text == "▁"
    made = Engine(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="cannot be said in GGUF: it does not split text as GPT-2"):
        vocabulary_of(load_tokenizer(tmp_path))
