"""Laws of packed files: tokens come back, damage is seen, and they serve as a corpus without being copied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from redraft.errors import UserError
from redraft.text.shards.packed import packed_shard, packed_tokens, write_packed
from redraft.text.shards.prepare import prepare
from redraft.text.tokenizers.tokenizer import Bytes


@pytest.mark.parametrize("dtype", ["<u1", "<i2", "<u2", "<i4", "<i8"])
def test_packed_tokens_come_back(tmp_path: Path, dtype: str) -> None:
    tokens = np.random.default_rng(0).integers(0, 128, 1000)
    write_packed(tmp_path / "a.bin", tokens, dtype)
    assert (tmp_path / "a.bin").read_bytes()[:16] == b"LITPKDS" + (1).to_bytes(8, "little") + bytes(
        [{"<u1": 1, "<i2": 3, "<u2": 8, "<i4": 4, "<i8": 5}[dtype]]
    )
    assert np.array_equal(packed_shard(tmp_path / "a.bin").map(), tokens)


def test_packed_files_read_as_one_stream(tmp_path: Path) -> None:
    for number in range(3):
        write_packed(tmp_path / f"{number}.bin", np.arange(number * 100, number * 100 + 100))
    tokens = packed_tokens(sorted(tmp_path.iterdir()))
    assert (tokens.count, tokens.bytes, tokens.documents, tokens.bytes_per_token) == (300, None, None, None)
    assert tokens.read(50, 200).tolist() == list(range(50, 250))


def test_tokens_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit <u2"):
        write_packed(tmp_path / "a.bin", np.array([70000]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "is cut short: its header promises 224 bytes and it has 223"),
        (lambda data: data + b"\0", "is too long"),
        (lambda data: data[:20], "is not a packed token file"),
        (lambda data: b"X" + data[1:], "is not a packed token file"),
        (lambda data: data[:7] + b"\2" + data[8:], "version 2, dtype code 8"),
        (lambda data: data[:15] + b"\6" + data[16:], "version 1, dtype code 6"),
    ],
)
def test_a_damaged_packed_file_is_refused(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "a.bin"
    write_packed(path, np.arange(100))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as caught:
        packed_shard(path)
    assert "a.bin" in str(caught.value)


def test_a_packed_folder_is_a_corpus_where_it_lies(tmp_path: Path) -> None:
    for name in ("train_slim_0000000000", "train_slim_0000000001", "validation_0000000000"):
        write_packed(tmp_path / f"{name}.bin", np.arange(100))
    corpus = prepare(str(tmp_path), Bytes(), tmp_path / "unused")
    assert (corpus.split("train").count, corpus.split("validation").count) == (200, 100)
    assert not (tmp_path / "unused").exists()
    (tmp_path / "validation_0000000000.bin").unlink()
    with pytest.raises(UserError, match="name a validation source"):
        prepare(str(tmp_path), Bytes(), tmp_path / "unused")
    write_packed(tmp_path / "other.bin", np.array([300]))
    with pytest.raises(UserError, match="holds the id 300, and bytes has 257"):
        prepare(f"{tmp_path}/train*.bin", Bytes(), tmp_path / "unused", validation=str(tmp_path / "other.bin"))


def test_a_bin_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"model\.bin: its name must end in .* LITPKDS"):
        prepare(str(tmp_path / "model.bin"), Bytes(), tmp_path / "unused")
