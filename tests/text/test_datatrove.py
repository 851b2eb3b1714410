"""A datatrove pipeline writes the shards that `prepare` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datatrove")

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader

from redraft.errors import UserError
from redraft.text.shards.datatrove import WriteShards, gather
from redraft.text.shards.prepare import prepare
from redraft.text.shards.shards import Corpus
from redraft.text.tokenizers.tokenizer import Bytes

SMALL = 200


def pipeline(folder: Path, into: Path, logs: Path, tasks: int = 1, **options: Any) -> LocalPipelineExecutor:
    steps = [
        JsonlReader(str(folder), glob_pattern="*.jsonl"),
        WriteShards(str(into), "bytes", shard_tokens=SMALL, **options),
    ]
    return LocalPipelineExecutor(pipeline=steps, tasks=tasks, workers=1, logging_dir=str(logs))


@pytest.fixture
def texts(documents: Path, tmp_path: Path) -> Path:
    """The folder of the 60 documents alone."""
    folder = tmp_path / "texts"
    folder.mkdir()
    return documents.rename(folder / documents.name).parent


def test_one_task_writes_what_prepare_writes(texts: Path, tmp_path: Path) -> None:
    pipeline(texts, tmp_path / "trove", tmp_path / "logs").run()
    ours = prepare(str(texts), Bytes(), tmp_path / "ours", shard_tokens=SMALL)
    found = gather(tmp_path / "trove")
    assert found.sha256 == ours.sha256
    for split in ("train", "validation"):
        shards = zip(found.split(split).shards, ours.split(split).shards, strict=True)
        for one, other in shards:
            assert one.path.read_bytes() == other.path.read_bytes()
            index = [path.with_suffix("").with_suffix(".idx.npy") for path in (one.path, other.path)]
            assert np.array_equal(*(np.load(path) for path in index))
        assert found.split(split).documents == ours.split(split).documents
        assert found.split(split).bytes == ours.split(split).bytes


def test_many_tasks_hold_every_document_once(texts: Path, tmp_path: Path) -> None:
    lines = (texts / "documents.jsonl").read_text().splitlines()
    (texts / "documents.jsonl").unlink()
    for number in range(4):
        (texts / f"{number}.jsonl").write_text("\n".join(lines[number::4]) + "\n")
    pipeline(texts, tmp_path / "trove", tmp_path / "logs", tasks=3).run()
    corpus = gather(tmp_path / "trove")
    found: list[str] = []
    for split in ("train", "validation"):
        tokens = corpus.split(split)
        ids = tokens.read(0, tokens.count)
        found += [Bytes().decode(part) for part in np.split(ids, np.flatnonzero(ids == 256) + 1) if len(part)]
    assert sorted(found) == sorted(json.loads(line)["text"] for line in lines)
    assert prepare(str(tmp_path / "trove"), Bytes(), tmp_path / "unused").sha256 == corpus.sha256  # as data.source


def test_a_task_that_was_killed_goes_on_and_one_that_is_lacking_is_named(texts: Path, tmp_path: Path) -> None:
    pipeline(texts, tmp_path / "trove", tmp_path / "logs").run()
    before = gather(tmp_path / "trove").sha256
    task = tmp_path / "trove" / "task_00000"
    kept = (task / "train_00000.bin").stat().st_ino
    for name in ("done.json", "train_00001.bin"):
        (task / name).unlink()
    with pytest.raises(UserError, match="no finished task"):
        gather(tmp_path / "trove")
    pipeline(texts, tmp_path / "trove", tmp_path / "again").run()
    assert gather(tmp_path / "trove").sha256 == before
    assert (task / "train_00000.bin").stat().st_ino == kept
    done = json.loads((task / "done.json").read_text())
    done["made_of"]["tasks"] = 2
    (task / "done.json").write_text(json.dumps(done))
    with pytest.raises(UserError, match=r"1 of 2 tasks have not ended .task_00001 first"):
        gather(tmp_path / "trove")


def test_another_corpus_s_folder_and_tokenizer_are_refused(texts: Path, tmp_path: Path, data: Path) -> None:
    from redraft.text.tokenizers.tokenizer import load_tokenizer

    pipeline(texts, tmp_path / "trove", tmp_path / "logs").run()
    gather(tmp_path / "trove")
    with pytest.raises(UserError, match="tokenised by another tokenizer"):
        prepare(str(tmp_path / "trove"), load_tokenizer(data / "tokenizers" / "gpt2"), tmp_path / "unused")
    step = WriteShards(str(tmp_path / "trove"), "bytes", fraction=0.2, shard_tokens=SMALL)
    with pytest.raises(UserError, match="holds a corpus of another source"):
        list(step.run(iter([])))
    assert Corpus.open(tmp_path / "trove").vocab == 257
