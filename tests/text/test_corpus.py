"""Laws of sources: every format and compression gives the same documents, splits are fixed, mistakes have sentences."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest

from redraft.errors import UserError
from redraft.text.sources.corpus import TRAIN, VALIDATION, assigned, open_source
from redraft.text.sources.formats import read_documents

TEXTS = ["first\nline", "zweite Ünïcode 文", " spaced ", "four", "five"]


def compressed(path: Path, how: str) -> Path:
    import zstandard

    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}[how]
    out = path.with_name(path.name + how)
    out.write_bytes(pack(path.read_bytes()))
    return out


def written(folder: Path, kind: str) -> Path:
    path = folder / f"texts{kind}"
    if kind == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"id": range(5), "text": TEXTS}), path)
    else:
        field = "content" if kind == ".json" else "text"
        path.write_text("\n".join(json.dumps({"id": 0, field: text}) for text in TEXTS) + "\n\n", "utf-8")
    return path


def texts(source: str) -> list[str]:
    return [document.text for document in open_source(source).documents()]


@pytest.mark.parametrize("how", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
def test_formats_and_compressions_read_the_same_documents(tmp_path: Path, kind: str, how: str) -> None:
    path = compressed(written(tmp_path, kind), how)
    assert texts(str(path)) == TEXTS
    reads = [read for _, read in read_documents(path)]
    assert reads == sorted(reads) and 0 < reads[-1] <= path.stat().st_size


@pytest.mark.parametrize("how", ["", ".gz", ".xz", ".zst"])
def test_a_text_file_is_one_document(tmp_path: Path, how: str) -> None:
    path = tmp_path / "one.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "é\r\n\n two".encode())
    assert texts(str(compressed(path, how))) == ["é\r\n\n two"]


def test_lists_globs_and_folders_name_files_in_a_fixed_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/skipped.csv"):
        (tmp_path / name).write_text(name)
    assert texts(str(tmp_path)) == texts(f"{tmp_path}/**/*") == ["a.txt", "b.txt", "sub/c.txt"]
    assert texts(f"{tmp_path}/sub, {tmp_path}/a.txt") == ["sub/c.txt", "a.txt"]


def test_half_a_surrogate_pair_in_json_becomes_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
    assert texts(str(tmp_path / "a.jsonl")) == ["a?b"]


def test_the_standard_library_is_there_without_its_tests() -> None:
    source = open_source("stdlib")
    documents = list(source.documents())
    names = [document.key for document in documents]
    assert names == sorted(names) and "json/decoder.py" in names
    assert not any({"test", "tests", "site-packages"} & set(name.split("/")) for name in names)
    held_out = [part.split for part in assigned(source, None, 0.05)].count(VALIDATION)
    # binomial: 5 standard deviations of a 5 % share
    assert abs(held_out / len(documents) - 0.05) < 5 * (0.05 * 0.95 / len(documents)) ** 0.5
    assert source.identity() == open_source("stdlib").identity()


@pytest.mark.parametrize("n", [2, 3, 10, 400])
def test_both_splits_get_documents_and_none_gets_lost(tmp_path: Path, n: int) -> None:
    path = tmp_path / "n.jsonl"
    path.write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(n)))
    parts = list(assigned(open_source(str(path)), None, 0.05))
    assert [part.text for part in parts] == [str(i) for i in range(n)]
    assert {part.split for part in parts} == {TRAIN, VALIDATION}
    assert parts == list(assigned(open_source(str(path)), None, 0.05))


def test_a_longer_corpus_keeps_the_splits_of_the_shorter(tmp_path: Path) -> None:
    splits = []
    for n in (50, 90):
        path = tmp_path / f"{n}.jsonl"
        path.write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(n)))
        splits.append([part.split for part in assigned(open_source(str(path)), None, 0.1)])
    assert splits[1][:50] == splits[0]


@pytest.mark.parametrize("text", ["".join(f"line {i}\n" for i in range(100)), "x" * 1000, "a\n" + "y" * 998])
def test_a_single_text_is_cut_near_its_end_at_a_line_end(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    train, validation = assigned(open_source(str(tmp_path / "a.txt")), None, 0.05)
    assert train.text + validation.text == text
    assert (train.split, validation.split) == (TRAIN, VALIDATION)
    if text.count("\n") > 1:
        assert train.text.endswith("\n") and abs(len(validation.text) / len(text) - 0.05) < 0.01


def test_a_validation_source_is_the_whole_validation_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    a, b = (open_source(str(tmp_path / f"{name}.txt")) for name in "ab")
    assert [part[:2] for part in assigned(a, b, 0.05)] == [(TRAIN, "a"), (VALIDATION, "b")]
    with pytest.raises(UserError, match=r"a\.txt is in both"):
        list(assigned(a, a, 0.05))


def test_the_datasets_library_streams_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    assert texts(f"hf:{tmp_path / 'set'}") == texts(f"hf:{tmp_path / 'set'}::train") == TEXTS
    with pytest.raises(UserError, match="cannot open hf:"):
        texts(f"hf:{tmp_path / 'set'}::nosplit")


MISTAKES = {
    "missing.txt": (None, "there is no file or folder"),
    "empty.txt": (b"", "is empty"),
    "nul.txt": (b"a\0b", "is not UTF-8 text"),
    "latin.txt": (b"caf\xe9", "is not UTF-8 text .byte 0xe9 at 3"),
    "latin.jsonl": (b'{"text": "caf\xe9"}', "is not UTF-8 text"),
    "table.csv": (b"a,b", "its name must end in one of"),
    "broken.jsonl": (b'{"text": "a"}\n{"text"\n', "line 2 of .* is not JSON"),
    "array.json": (b'["a"]', "is a JSON list"),
    "fields.jsonl": (b'{"body": "a", "id": 1}', "its fields: body, id"),
    "number.jsonl": (b'{"text": 1}', "holds a int in its field 'text'"),
    "noise.gz": (b"a", "its name must end in one of"),
    "noise.txt.gz": (b"not gzip", "cannot be read"),
    "cut.txt.gz": (gzip.compress(bytes(range(32, 127)) * 9)[:40], "cannot be read"),
    "cut.txt.xz": (lzma.compress(bytes(range(32, 127)) * 9)[:60], "cannot be read"),
    "noise.parquet": (b"not parquet", "is not a parquet file"),
    "*.nothing": (None, "gives no file to read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_file(tmp_path: Path, name: str) -> None:
    content, message = MISTAKES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        texts(str(tmp_path / name))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_zstd_file_that_was_cut_short_is_not_read_as_a_shorter_one(tmp_path: Path) -> None:
    path = compressed(written(tmp_path, ".jsonl"), ".zst")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="cut short"):
        texts(str(path))


def test_a_folder_without_text_and_an_empty_source_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the folder .* gives no file"):
        open_source(str(tmp_path))
    with pytest.raises(UserError, match="is empty"):
        open_source(" , ")
    with pytest.raises(UserError, match="write hf:NAME"):
        open_source("hf:a:b:c:d")
