"""Processes of their own that begin with torch imported: a server imports it once, and each is a fork of the server.

What a process does at its start is not tested through these: `python -m redraft` is (tests/test_wheel.py, test_early.py).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

IMPORTED = [
    "pytest", "numpy", "torch.nn.parallel", "torch.distributed.fsdp", "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict", "torch.distributed.elastic.multiprocessing.errors", "redraft.cli",
    "redraft.commands.train", "redraft.commands.study", "redraft.runs.run", "redraft.studies.workers",
    "redraft.training.setup", "redraft.training.trainer", "redraft.training.distributed.sharded_checkpoint",
]  # fmt: skip
multiprocessing.set_forkserver_preload(IMPORTED)
CONTEXT = multiprocessing.get_context("forkserver")


def start(work: Callable[..., Any], *arguments: Any, said: Path | None = None, **environment: str) -> ForkServerProcess:
    """A process that calls `work(*arguments)`, in this one's environment and `environment`; both outputs go to `said`."""
    process = CONTEXT.Process(target=_begin, args=(os.environ | environment, said, work, arguments))
    process.start()
    return process


def redraft(*words: object, said: Path | None = None, **environment: str) -> ForkServerProcess:
    """A process of `redraft WORDS`."""
    return start(_command, [str(word) for word in words], said=said, **environment)


def ended(process: ForkServerProcess, timeout: float = 120) -> int:
    """The exit status of a process that ends within so many seconds; minus the signal that killed it."""
    process.join(timeout)
    assert process.exitcode is not None, f"process {process.pid} is alive after {timeout} s"
    return process.exitcode


def stop_server() -> None:
    """End the server and wait for it, so that its processes' time counts as the suite's."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _begin(environment: Mapping[str, str], said: Path | None, work: Callable[..., Any], arguments: Any) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    output = os.open(said or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
    work(*arguments)


def _command(words: list[str]) -> None:
    from redraft.cli import main

    main(words)
