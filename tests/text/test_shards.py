"""Laws of shards: they hold the tokenised text, the same bytes however often the work is interrupted."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from redraft.errors import UserError
from redraft.text.shards.prepare import prepare, prepare_cached
from redraft.text.shards.shards import Corpus, prepared_corpus
from redraft.text.shards.tokens import Tokens
from redraft.text.sources.corpus import assigned, open_source
from redraft.text.tokenizers.encoders import Encoders
from redraft.text.tokenizers.tokenizer import Bytes, Tokenizer

SMALL = 200  # tokens in a shard: the 60 documents fill several


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_shards_hold_the_tokenised_text(documents: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    corpus = prepare(str(documents), tokenizer, tmp_path / "out", shard_tokens=SMALL, workers=2)
    parts = list(assigned(open_source(str(documents)), None, 0.05))
    for split in ("train", "validation"):
        tokens, texts = corpus.split(split), [part.text for part in parts if part.split == split]
        expected = np.concatenate([np.append(tokenizer.encode(text), tokenizer.eos) for text in texts])
        assert np.array_equal(tokens.read(0, tokens.count), expected)
        assert tokens.documents == len(texts)
        assert tokens.bytes == sum(len(text.encode()) for text in texts)
    assert len(corpus.split("train").shards) > 2
    assert (corpus.vocab, corpus.tokenizer_fingerprint) == (tokenizer.size, tokenizer.fingerprint)


def test_document_starts_follow_ends(documents: Path, tmp_path: Path) -> None:
    prepare(str(documents), Bytes(), tmp_path / "out", shard_tokens=SMALL)
    tokens = np.fromfile(tmp_path / "out" / "train_00001.bin", "<u2")
    starts = np.load(tmp_path / "out" / "train_00001.idx.npy")
    assert starts.dtype == np.uint64
    assert starts.tolist() == [0, *(np.flatnonzero(tokens == 256)[:-1] + 1)]


def test_threads_change_no_byte(documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redraft.text.shards.prepare._BATCH", 50)
    for workers in (1, 3):
        prepare(str(documents), Bytes(), tmp_path / str(workers), shard_tokens=SMALL, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_processes_change_no_byte(
    documents: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large sources are tokenised in processes; documents without a token and the order of batches among what is kept."""
    monkeypatch.setattr("redraft.text.shards.prepare._BATCH", 500)
    prepare(str(documents), tokenizer, tmp_path / "threads", shard_tokens=SMALL, workers=2)
    monkeypatch.setattr("redraft.text.shards.prepare._LARGE", 0)
    monkeypatch.setattr("redraft.text.shards.prepare._MANY", 2)
    started: list[Encoders] = []
    made = lambda *arguments: started.append(Encoders(*arguments)) or started[-1]
    monkeypatch.setattr("redraft.text.shards.prepare.Encoders", made)
    prepare(str(documents), tokenizer, tmp_path / "processes", shard_tokens=SMALL, workers=2)
    assert contents(tmp_path / "threads") == contents(tmp_path / "processes")
    assert [len(one.all) for one in started] == [2]
    assert all(process.process.poll() is not None for process in started[0].all)


def test_a_lost_process_is_one_line_and_leaves_no_manifest(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shot(Encoders):
        def __call__(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
            found = super().__call__(texts)
            for process in self.all:
                process.process.kill()
            return found

    monkeypatch.setattr("redraft.text.shards.prepare._BATCH", 50)
    monkeypatch.setattr("redraft.text.shards.prepare._LARGE", 0)
    monkeypatch.setattr("redraft.text.shards.prepare._MANY", 2)
    monkeypatch.setattr("redraft.text.shards.prepare.Encoders", Shot)
    with pytest.raises(UserError, match=r"a tokenising process ended .status -9.*the same command goes on"):
        prepare(str(documents), Bytes(), tmp_path / "out", shard_tokens=SMALL, workers=2)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.undo()
    assert prepare(str(documents), Bytes(), tmp_path / "out", shard_tokens=SMALL).split("train").count


@pytest.mark.parametrize("lost", ["train_00001.json", "train_00001.bin", "train_00001.idx.npy", "train_00000.bin"])
def test_a_continued_run_equals_the_unbroken_one(documents: Path, tmp_path: Path, lost: str) -> None:
    prepare(str(documents), Bytes(), tmp_path / "out", shard_tokens=SMALL)
    before = contents(tmp_path / "out")
    kept = (tmp_path / "out" / "validation_00000.bin").stat().st_ino
    for name in ("manifest.json", lost):
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / "train_00002.bin.tmp-1").write_bytes(b"left by a killed process")
    prepare(str(documents), Bytes(), tmp_path / "out", shard_tokens=SMALL)
    assert contents(tmp_path / "out") == before
    assert (tmp_path / "out" / "validation_00000.bin").stat().st_ino == kept


KILLED = """
import os, signal, sys
from pathlib import Path
from redraft.text.shards.prepare import prepare
from redraft.text.tokenizers.tokenizer import Bytes
import redraft.text.shards.prepare as module
module._BATCH = 50
seen = []
def progress(done, total):
    seen.append(done)
    if len(seen) == 40:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(sys.argv[1], Bytes(), Path(sys.argv[2]), shard_tokens=200, workers=2, progress=progress)
"""


def test_a_killed_run_is_continued_to_the_same_bytes(documents: Path, tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(documents), str(tmp_path / "killed")], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = contents(tmp_path / "killed")
    assert "manifest.json" not in left and "train_00002.json" in left
    inode = (tmp_path / "killed" / "train_00000.bin").stat().st_ino
    again = prepare(str(documents), Bytes(), tmp_path / "killed", shard_tokens=SMALL)
    unbroken = prepare(str(documents), Bytes(), tmp_path / "unbroken", shard_tokens=SMALL)
    assert contents(tmp_path / "killed") == contents(tmp_path / "unbroken")
    assert again.sha256 == unbroken.sha256
    assert (tmp_path / "killed" / "train_00000.bin").stat().st_ino == inode


def test_a_prepared_corpus_is_reused_until_its_source_changes(documents: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def again() -> Corpus:
        return prepare(str(documents), Bytes(), tmp_path / "out", progress=lambda done, total: calls.append(done))

    first, n = again(), len(calls)
    assert again().sha256 == first.sha256 and len(calls) == n
    os.utime(documents, ns=(1, 1))
    with pytest.raises(UserError, match="holds a corpus of another source"):
        again()
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(UserError, match="holds a corpus of another source"):
        again()


def test_the_cache_has_a_folder_for_each_state_of_a_source(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path / "cache"))
    first = prepare_cached(str(documents), Bytes())
    assert prepare_cached(str(documents), Bytes()).sha256 == first.sha256
    os.utime(documents, ns=(1, 1))
    assert prepare_cached(str(documents), Bytes()).sha256 == first.sha256
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_prepared_corpus_is_a_source(documents: Path, tmp_path: Path) -> None:
    made = prepare(str(documents), Bytes(), tmp_path / "out")
    again = prepare(str(tmp_path / "out"), Bytes(), tmp_path / "unused")
    assert again.sha256 == made.sha256 and not (tmp_path / "unused").exists()
    with pytest.raises(UserError, match=r"leave data\.validation out"):
        prepare(str(tmp_path / "out"), Bytes(), tmp_path / "unused", validation=str(documents))
    for others in ('{"of": "somebody else"}', "[]", "no JSON"):
        (tmp_path / "out" / "manifest.json").write_text(others)
        assert prepared_corpus(str(tmp_path / "out"), Bytes()) is None


def test_progress_reaches_the_size_of_the_source(documents: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    prepare(str(documents), Bytes(), tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    done = [part for part, _ in told]
    assert done == sorted(done) and told[-1] == (documents.stat().st_size, documents.stat().st_size)


def test_tokens_read_across_shards(numbers: Tokens) -> None:
    for start, n in [(0, 103), (9, 3), (10, 1), (11, 0), (60, 43), (103, 0)]:
        assert numbers.read(start, n).tolist() == list(range(start, start + n))
    for start, n in [(-1, 2), (100, 4)]:
        with pytest.raises(ValueError, match="there are 103"):
            numbers.read(start, n)


def test_pickled_tokens_carry_no_tokens(numbers: Tokens) -> None:
    numbers.read(0, 103)
    copy = pickle.loads(pickle.dumps(numbers))
    assert not copy._files and copy.read(5, 20).tolist() == list(range(5, 25))


def test_sources_without_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(UserError, match=r"blank\.jsonl holds no text"):
        prepare(str(tmp_path / "blank.jsonl"), Bytes(), tmp_path / "a")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(UserError, match="too few to split"):
        prepare(str(tmp_path / "x.txt"), Bytes(), tmp_path / "b")
    with pytest.raises(UserError, match="the validation source holds no text"):
        prepare(str(tmp_path / "x.txt"), Bytes(), tmp_path / "c", validation=str(tmp_path / "blank.jsonl"))
    with pytest.raises(UserError, match=r"fraction for validation is 1\.5"):
        prepare(str(tmp_path / "x.txt"), Bytes(), tmp_path / "d", fraction=1.5)


def test_a_full_disk_and_a_forbidden_folder_are_named(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write in .*file"):
        prepare(str(documents), Bytes(), tmp_path / "file")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"no space is left in .*out"):
        prepare(str(documents), Bytes(), tmp_path / "out")
    assert list(contents(tmp_path / "out")) == []


def test_a_damaged_corpus_is_not_opened(documents: Path, tmp_path: Path) -> None:
    prepare(str(documents), Bytes(), tmp_path / "out")
    with pytest.raises(UserError, match="holds no prepared corpus"):
        Corpus.open(tmp_path)
    shard = tmp_path / "out" / "train_00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train_00000\.bin is missing or not"):
        Corpus.open(tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 99}))
    with pytest.raises(UserError, match="schema 99"):
        Corpus.open(tmp_path / "out")


def test_the_room_imports_no_torch() -> None:
    code = "import sys, redraft.text.shards.prepare, redraft.text.shards.packing; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize("harm", ["removed", "cut short"])
def test_a_shard_lost_while_it_is_read_is_named(documents: Path, tmp_path: Path, harm: str) -> None:
    """Whether the file was read from before or not: an error, and no signal as of a memory map."""
    prepare(str(documents), Bytes(), tmp_path / "out", shard_tokens=SMALL)
    tokens = Corpus.open(tmp_path / "out").split("train")
    first, later = tokens.shards[0], tokens.shards[1]
    assert len(tokens.read(0, 10)) == 10
    if harm == "removed":
        later.path.unlink()
        with pytest.raises(UserError, match=f"{later.path.name} was lost while it was read .No such file"):
            tokens.read(first.count, 10)
    else:
        os.truncate(first.path, 30)
        with pytest.raises(UserError, match=f"{first.path.name} was lost while it was read .it is cut short"):
            tokens.read(10, 10)
    with pytest.raises(OSError, match="lost"):  # who answers a failing disk answers this
        tokens.read(0, tokens.count)


def test_more_files_than_may_be_open_are_read(numbers: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redraft.text.shards.tokens._OPEN_FILES", 2)
    assert numbers.read(0, 103).tolist() == list(range(103)) and len(numbers._files) == 2
