"""A file is what it is, reading fails in one line, and what a tokenizer loses is counted."""

from __future__ import annotations

import glob
import gzip
import io
import json
import lzma
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.errors import UserError
from redraft.evaluation.likelihood.perplexity import Convention, windows
from redraft.text.examples.examples import Recipe, prepare_prompts
from redraft.text.shards.mixture import prepare_text
from redraft.text.shards.prepare import prepare
from redraft.text.sources.corpus import find_files, open_source
from redraft.text.sources.formats import ACCEPTED, is_usable, read_documents, read_records
from redraft.text.tokenizers.tokenizer import MOST_LOST, Bytes, HuggingFace, Tokenizer

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")

DOCS = [f"document number {i} tells a short story, {i * 7919 % 1000} words of it." for i in range(40)]


def rows(path: Path, docs: list[str] = DOCS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": doc}) + "\n" for doc in docs))
    return path


def found(spec: Path | str) -> list[str]:
    return [str(path) for path in find_files(str(spec), is_usable, ACCEPTED)]


def test_linked_folders_are_read_and_loops_are_not_read_again(tmp_path: Path) -> None:
    here, there = rows(tmp_path / "corpus/here.jsonl"), rows(tmp_path / "elsewhere/there.jsonl")
    os.symlink("../elsewhere", tmp_path / "corpus/linked")
    os.symlink("..", tmp_path / "corpus/back")
    os.symlink("here.jsonl", tmp_path / "corpus/same.jsonl")
    for spec in (tmp_path / "corpus", f"{tmp_path}/corpus/**/*.jsonl", f"{here},{there},{tmp_path}/corpus"):
        inodes = [os.stat(path).st_ino for path in found(spec)]
        assert sorted(inodes) == sorted({here.stat().st_ino, there.stat().st_ino})


def test_a_glob_goes_through_every_folder_once_however_many_loops_there_are(tmp_path: Path) -> None:
    deep = [rows(tmp_path / f"corpus/{name}/deep/a.jsonl") for name in ("one", "two", "[three]")]
    rows(tmp_path / "corpus/.hidden/a.jsonl")
    for name in "abcdef":
        os.symlink("..", tmp_path / f"corpus/one/{name}")
    wanted = sorted(path.stat().st_ino for path in deep)
    for pattern in ("**", "**/*.jsonl", "**/deep/*", "*/**/*.jsonl", "**/deep/**/a.jsonl", "**//**/a.*"):
        assert sorted(os.stat(path).st_ino for path in found(f"{tmp_path}/corpus/{pattern}")) == wanted, pattern


def test_a_glob_without_links_names_what_glob_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b/a", "b/c/a", "b/.c/a", "b-c/a", ".b/a"):
        rows(tmp_path / f"{name}.jsonl")
    monkeypatch.chdir(tmp_path)
    patterns = ["**", "**/*.jsonl", "b/**", "b/**/a.jsonl", "*/**/*.jsonl", "**/c/*"]
    for pattern in [*patterns, "b**/*.jsonl", ".b/**/*", "./**/[ab]*"]:
        named = sorted(path for name in glob.iglob(pattern, recursive=True) if (path := Path(name)).is_file())
        assert found(pattern) == [str(path) for path in sorted(named, key=Path.as_posix)], pattern


@pytest.mark.parametrize("target", ["nowhere", "self.jsonl"])
def test_a_link_that_leads_nowhere_is_refused(target: str, tmp_path: Path) -> None:
    rows(tmp_path / "corpus/here.jsonl")
    os.symlink("..", tmp_path / "corpus/back")
    os.symlink(target, tmp_path / "corpus/self.jsonl")
    for spec in (tmp_path / "corpus", f"{tmp_path}/corpus/**/*.jsonl"):
        with pytest.raises(UserError, match=r"self.jsonl cannot be read .*mend the link"):
            found(spec)


@pytest.mark.parametrize("how", ["same", "link", "hard", "copy", "gz", "parquet", "folder"])
def test_no_training_document_is_validated_on_under_any_spelling(how: str, tmp_path: Path) -> None:
    train, other = rows(tmp_path / "train.jsonl"), tmp_path / "other.jsonl"
    if how == "link":
        other.symlink_to(train)
    elif how == "hard":
        os.link(train, other)
    elif how == "copy":
        rows(other, DOCS[::-1])
    elif how == "gz":
        (other := tmp_path / "other.jsonl.gz").write_bytes(gzip.compress(train.read_bytes()))
    elif how == "parquet":
        pq.write_table(pa.table({"text": DOCS}), other := tmp_path / "other.parquet")
    elif how == "folder":
        other = rows(tmp_path / "deep/other.jsonl").parent
    else:
        other = train
    with pytest.raises(UserError, match="validat"):
        prepare(str(train), Bytes(), tmp_path / "into", validation=str(other))


def test_a_few_shared_documents_are_counted(tmp_path: Path) -> None:
    train, other = rows(tmp_path / "train.jsonl"), rows(tmp_path / "other.jsonl", [*DOCS[:2], "new", "newer", "newest"])
    assert prepare(str(train), Bytes(), tmp_path / "into", validation=str(other)).shared == 2


def test_a_source_of_a_mixture_is_not_validated_on_another_one_s_file(tmp_path: Path) -> None:
    from redraft.config import DataConfig

    a, b = rows(tmp_path / "a.jsonl"), rows(tmp_path / "b.jsonl", DOCS[::-1])
    mixture: Any = [{"source": str(a)}, {"source": str(b), "validation": str(a)}]
    with pytest.raises(UserError, match="is in both"):
        prepare_text(DataConfig(mixture=mixture, length=8), Bytes(), tmp_path / "cache")


def column(kind: str, data: list[bytes]) -> Any:
    raw = pa.array(data, pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    return text.dictionary_encode() if kind == "dictionary" else text.cast(getattr(pa, kind)())


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_every_arrow_type_that_is_text_is_text(kind: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": column(kind, [d.encode() for d in DOCS])}), tmp_path / "t.parquet")
    assert [text for text, _ in read_documents(tmp_path / "t.parquet")] == DOCS


@pytest.mark.parametrize("values", [[1, 2], [b"a", b"b"], [["a"], ["b"]], [{"a": "b"}], [None, None]])
def test_every_other_is_refused_by_name(values: list[Any], tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(values)}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"column 'text' of .* holds .*, not text"):
        list(read_documents(tmp_path / "t.parquet"))


def test_bytes_that_are_no_text_are_told_where_they_are_read_alone(tmp_path: Path) -> None:
    bad = column("string", [*(d.encode() for d in DOCS[:-1]), b"caf\xe9"])
    pq.write_table(pa.table({"text": bad}), tmp_path / "bad.parquet")
    pq.write_table(pa.table({"text": DOCS, "url": bad}), tmp_path / "beside.parquet")
    for read in (read_documents, read_records):
        with pytest.raises(UserError, match=r"bad.parquet is not UTF-8 text"):
            list(read(tmp_path / "bad.parquet"))
        assert len(list(read(tmp_path / "beside.parquet"))) == len(DOCS)


def files() -> dict[str, bytes]:
    lines = "".join(json.dumps({"text": doc}) + "\n" for doc in DOCS).encode()
    table, out = io.BytesIO(), {"a.jsonl": lines, "a.txt": "\n".join(DOCS).encode()}
    pq.write_table(pa.table({"text": DOCS}), table, compression="NONE")
    out["a.parquet"] = table.getvalue()
    for name, data in list(out.items()):
        zstd = zstandard.ZstdCompressor(write_checksum=True).compress(data)  # as the program `zstd` does
        compressed = {"gz": gzip.compress(data), "xz": lzma.compress(data), "zst": zstd}
        out |= {f"{name}.{how}": packed for how, packed in compressed.items()}
    return out


FILES = files()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("read", [read_documents, read_records], ids=["documents", "records"])
def test_a_flipped_bit_is_rows_or_one_line(name: str, read: Any, tmp_path: Path) -> None:
    """Never another exception, and never fewer rows in silence: text has ends of lines in it, which may come and go."""
    whole = len(list(read(_written(tmp_path / name, FILES[name]))))
    places = np.random.default_rng(0).integers(0, 8 * len(FILES[name]), int(os.environ.get("REDRAFT_FUZZ", "60")))
    for place in places.tolist():
        data = bytearray(FILES[name])
        data[place // 8] ^= 1 << place % 8
        try:
            there = len(list(read(_written(tmp_path / name, bytes(data)))))
        except UserError as error:
            assert "\n" not in str(error) and name in str(error)
        else:
            assert there >= whole - 1


@pytest.mark.parametrize("window", [28, 31])
@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_a_long_window_of_zstd_is_read_to_its_end(window: int, kept: float, tmp_path: Path) -> None:
    settings = zstandard.ZstdCompressionParameters(window_log=window, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    data = packer.compress(FILES["a.jsonl"]) + packer.flush()
    path = _written(tmp_path / "long.jsonl.zst", 2 * data if kept == 1 else data[: int(kept * len(data))])
    if kept == 1:
        assert [text for text, _ in read_documents(path)] == 2 * DOCS
    else:
        with pytest.raises(UserError, match="cut short"):
            list(read_documents(path))


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def engines() -> dict[str, Tokenizer]:
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    drops = Engine(models.BPE(dropout=0.5))
    drops.pre_tokenizer, drops.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    drops.train_from_iterator(DOCS, trainers.BpeTrainer(vocab_size=100, special_tokens=["<eos>"], show_progress=False))
    unk = Engine(models.WordPiece(unk_token="[UNK]"))
    unk.normalizer, unk.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[SEP]"]
    unk.train_from_iterator(
        DOCS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    )
    return {"bytes": Bytes(), "drops": HuggingFace(drops.to_str()), "unknown": HuggingFace(unk.to_str())}


ENGINES = engines()


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",))))
def test_encode_is_deterministic_and_what_it_loses_is_counted(name: str, text: str) -> None:
    tokenizer = ENGINES[name]
    ids = tokenizer.encode(text)
    assert all(np.array_equal(tokenizer.encode(text), ids) for _ in range(3))
    lost = tokenizer.lost(text, ids)
    assert 0 <= lost <= len(text.encode())
    there, back = (Counter(c for c in said if not c.isspace()) for said in (text, tokenizer.decode(ids)))
    assert (lost == 0) == (there <= back)
    assert name != "bytes" or lost == 0


@pytest.mark.parametrize("name", ENGINES)
def test_text_that_is_not_encoded_makes_no_figure_better(name: str) -> None:
    from redraft.evaluation.likelihood.nelbo import Bound

    tokenizer, bound = ENGINES[name], Bound(1.0, 0.0, 0.1, True, 2, 1)
    score = lambda text: windows([text], tokenizer, Convention(64))
    plain, greek = score(" ".join(DOCS).lower()), score(" ".join(f"{doc} {'αβγδ' * 20}" for doc in DOCS).lower())
    assert plain.lost <= MOST_LOST and plain.per_text(bound)["bits_per_byte"] is not None
    withheld = greek.per_text(bound)["bits_per_byte"] is None
    assert withheld == (greek.lost > MOST_LOST) == (name != "bytes")


def test_examples_that_are_trained_on_are_not_validated_on(tmp_path: Path) -> None:
    pairs = [json.dumps({"prompt": f"{i} + 1 =", "completion": f" {i + 1}"}) + "\n" for i in range(20)]
    train, other = tmp_path / "train.jsonl", tmp_path / "other.jsonl"
    train.write_text("".join(pairs))
    other.write_text("\n".join(reversed(pairs)))
    recipe = Recipe("prompts", None, 64, "one", "skip")
    with pytest.raises(UserError, match=r"of the 20 documents of .*other.jsonl are in the training source"):
        prepare_prompts(str(train), Bytes(), recipe, validation=str(other), cache=tmp_path / "cache")


def test_a_source_says_its_files(tmp_path: Path) -> None:
    rows(tmp_path / "a.jsonl")
    assert next(open_source(str(tmp_path)).documents()).text == DOCS[0]
