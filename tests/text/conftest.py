"""Where the real data lies, and small corpora that every test here can make."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from redraft.text.shards.tokens import Shard, Tokens
from redraft.text.tokenizers.tokenizer import Bytes, Tokenizer, load_tokenizer

BESIDE = Path(__file__).parents[3] / "shared" / "data"
TOKENIZERS = ("bytes", "gpt2", "llama2_32k", "mistral_v1_32k")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data, or a skip."""
    folder = Path(os.environ.get("REDRAFT_DATA", BESIDE))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: set REDRAFT_DATA")
    return folder


@pytest.fixture(scope="session", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Iterator[Tokenizer]:
    """Each tokenizer; those with a vocabulary come from the real data."""
    if request.param == "bytes":
        yield Bytes()
    else:
        folder = request.getfixturevalue("data") / "tokenizers"
        yield load_tokenizer(folder / request.param)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A `.jsonl` file of 60 documents, of which the numbers are their text."""
    path = tmp_path / "documents.jsonl"
    rows = [json.dumps({"text": f"document {i}:\n" + "é word" * (i % 7 + 1)}) for i in range(60)]
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


@pytest.fixture
def stream(tmp_path: Path) -> Callable[[list[int]], Tokens]:
    """Makes the tokens 0, 1, 2, ... in shards of the sizes given."""

    def make(sizes: list[int]) -> Tokens:
        shards, start = [], 0
        for number, size in enumerate(sizes):
            file = tmp_path / f"{number}.bin"
            np.arange(start, start + size, dtype="<u4").tofile(file)
            shards.append(Shard(file, size, "<u4"))
            start += size
        return Tokens(shards, documents=None, bytes=None)

    return make


@pytest.fixture
def numbers(stream: Callable[[list[int]], Tokens]) -> Tokens:
    """The tokens 0 .. 102 in four shards."""
    return stream([10, 1, 50, 42])
