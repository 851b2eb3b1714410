"""Tokenisation on a cluster: a writer of our shards for `datatrove` pipelines, and the merge of its tasks.

    from datatrove.executor import SlurmPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from redraft.text.shards.datatrove import WriteShards, gather

    steps = [JsonlReader("slimpajama"), WriteShards("corpus", "llama2_32k")]
    SlurmPipelineExecutor(pipeline=steps, tasks=256, time="10:00:00", partition="cpu").run()
    gather("corpus")                                # when all tasks have ended; then: redraft train --data corpus

Every task writes a folder of its own, whole shards first, and one that was killed goes on after its last whole shard. For
one task the shards are those of `prepare`, byte for byte; of more, a task's documents stay together, in the order of the
tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from redraft.errors import UserError
from redraft.files import alone, clean, make_folder, read_json, write_json, write_text
from redraft.text.shards.shards import (
    MANIFEST,
    SCHEMA,
    SPLITS,
    Corpus,
    ShardRecord,
    ShardWriter,
    data_sha256,
    token_dtype,
)
from redraft.text.sources.corpus import TRAIN, VALIDATION, in_validation
from redraft.text.tokenizers.tokenizer import Tokenizer, load_tokenizer

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise UserError(
        "redraft.text.shards.datatrove needs the package 'datatrove': pip install 'redraft[cluster]'"
    ) from error

DONE = "done.json"


@final
class WriteShards(PipelineStep):
    """Writes the documents that reach it into `into`, a share `fraction` of them for validation, and lets them pass on.

    `tokenizer` as `load_tokenizer` takes it: every task loads its own. `name` is what the corpus is called, for people.
    """

    type = "Redraft"
    name = "Shards"

    def __init__(
        self, into: str, tokenizer: str, *, name: str = "datatrove", fraction: float = 0.05, shard_tokens: int = 2**26
    ) -> None:
        super().__init__()
        if not 0 < fraction < 1:
            raise UserError(f"the fraction for validation is {fraction}: it must lie between 0 and 1, both excluded.")
        self.into, self.tokenizer, self.called = Path(into), tokenizer, name
        self.fraction, self.shard_tokens = fraction, shard_tokens

    def run(self, data: Iterator[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Raises `UserError` for a folder that holds another corpus, and for a full disk."""
        tokenizer = load_tokenizer(self.tokenizer)
        made_of = self.made_of(tokenizer, world_size)
        folder, corpus = self.into / f"task_{rank:05d}", _identity({**made_of, "task": rank})
        make_folder(folder)
        with alone(folder):
            writers = {s: ShardWriter(folder, s, token_dtype(tokenizer), self.shard_tokens, corpus) for s in SPLITS}
            kept, number = {split: writer.documents for split, writer in writers.items()}, rank
            for document in data:
                text = clean(document.text)
                if text and not text.isspace():
                    split = VALIDATION if in_validation(number, str(number), self.fraction) else TRAIN
                    number += world_size
                    kept[split] -= 1
                    if kept[split] < 0:
                        with self.track_time():
                            writers[split].add(tokenizer.encode(text), tokenizer.eos, len(text.encode()))
                        self.stat_update(split)
                yield document
            for writer in writers.values():
                writer.close()
            shards = {split: [asdict(record) for record in writer.records] for split, writer in writers.items()}
            write_json(folder / DONE, {"made_of": made_of, "shards": shards})

    def made_of(self, tokenizer: Tokenizer, tasks: int) -> dict[str, Any]:
        """What all tasks of one corpus agree about."""
        about = {key: getattr(tokenizer, key) for key in ("name", "fingerprint", "size", "eos")}
        return {
            "schema": SCHEMA,
            "source": self.called,
            "fraction": self.fraction,
            "shard_tokens": self.shard_tokens,
            "tokenizer": about,
            "dtype": token_dtype(tokenizer),
            "tasks": tasks,
        }


def gather(into: str | Path) -> Corpus:
    """The corpus of all tasks: writes the manifest. `UserError` where a task has not ended, or belongs to another corpus."""
    folder = Path(into)
    tasks = [read_json(path) for path in sorted(folder.glob(f"task_*/{DONE}"))]
    if not tasks:
        raise UserError(
            f"{folder} holds no finished task: run the pipeline with WriteShards({str(folder)!r}, ...) first"
        )
    made_of = tasks[0]["made_of"]
    there = {path.parent.name for path in folder.glob(f"task_*/{DONE}")}
    lacking = [name for name in (f"task_{n:05d}" for n in range(made_of["tasks"])) if name not in there]
    if lacking:
        raise UserError(
            f"{len(lacking)} of {made_of['tasks']} tasks have not ended ({lacking[0]} first): run the pipeline again"
        )
    if len(tasks) > made_of["tasks"] or any(task["made_of"] != made_of for task in tasks):
        raise UserError(f"{folder} holds tasks of several corpora: remove it, and run the pipeline again")
    splits = {
        split: [record for task in range(len(tasks)) for record in _records(tasks, task, split)] for split in SPLITS
    }
    for split, records in splits.items():
        if not records:
            raise UserError(f"{folder} holds no text for {split}: give the pipeline more documents")
    manifest = {
        "schema": SCHEMA,
        "corpus": _identity(made_of),
        "source": made_of["source"],
        "tokenizer": made_of["tokenizer"],
        "dtype": made_of["dtype"],
        "splits": {split: [asdict(record) for record in records] for split, records in splits.items()},
        "sha256": data_sha256(splits),
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return Corpus.open(folder)


def _records(tasks: list[dict[str, Any]], task: int, split: str) -> Iterator[ShardRecord]:
    """A task's shards, by their names from the corpus's folder."""
    for record in tasks[task]["shards"][split]:
        yield ShardRecord(**{**record, "file": f"task_{task:05d}/{record['file']}"})


def _identity(made_of: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
