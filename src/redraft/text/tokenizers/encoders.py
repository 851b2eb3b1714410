"""Tokenisation in separate processes, for corpora that are large enough: text goes in, ids come out.

Threads go far, for both tokenizer libraries let go of the interpreter's lock. But lists of ids become arrays under it, so a
machine of many cores is not filled by one process. A worker is started by name and not by `multiprocessing`, which would
import the calling program again: nothing is asked of that.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

import redraft
from redraft.errors import UserError
from redraft.text.tokenizers.tokenizer import Bytes, HuggingFace, SentencePiece, Tokenizer

OURS = (Bytes, HuggingFace, SentencePiece)  # what another process can be told of


class Encoders:
    """`count` processes. Call it from as many threads: each call is served by a process that is free."""

    def __init__(self, tokenizer: Tokenizer, count: int):
        self.all = [_Process(tokenizer) for _ in range(count)]
        self.free = SimpleQueue[_Process]()
        for process in self.all:
            self.free.put(process)

    def __call__(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """The ids of each text. `UserError` where the process is lost, of memory for example."""
        process = self.free.get()
        try:
            return process.encode(texts)
        finally:
            self.free.put(process)

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self.all:
            process.close()


class _Process:
    """One worker, which ends when its input does: also when we are killed."""

    def __init__(self, tokenizer: Tokenizer):
        path = os.pathsep.join([str(Path(redraft.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        alone = {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "redraft.text.tokenizers.encoders"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | alone,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self.untold: Tokenizer | None = tokenizer

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        if self.untold is not None:
            self._send(self.untold)
            self.untold = None
        self._send(list(texts))
        try:
            sizes, ids = pickle.load(self.output)
        except (EOFError, pickle.UnpicklingError):
            raise self._lost() from None
        return np.split(ids.astype(np.int64), np.cumsum(sizes)[:-1])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.input, self.output):
            with suppress(BrokenPipeError):
                pipe.close()

    def _send(self, what: Any) -> None:
        try:
            pickle.dump(what, self.input, pickle.HIGHEST_PROTOCOL)
            self.input.flush()
        except BrokenPipeError:
            raise self._lost() from None

    def _lost(self) -> UserError:
        return UserError(
            f"a tokenising process ended (status {self.process.wait()}), for want of memory perhaps: the same command goes on"
        )


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """What a process does: a tokenizer, then lists of text, each answered by lengths and ids, until there are no more."""
    tokenizer: Tokenizer = pickle.load(requests)
    while True:
        try:
            texts = pickle.load(requests)
        except EOFError:
            return
        found = [tokenizer.encode(text) for text in texts]
        pickle.dump(([len(ids) for ids in found], np.concatenate(found).astype(np.int32)), replies, 5)
        replies.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us is told, and closes our input
    serve(sys.stdin.buffer, sys.stdout.buffer)
