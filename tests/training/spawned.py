"""Real ranks for tests: processes over gloo, each of which runs one function of this package's tests."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from redraft.training.distributed.ranks import Ranks, joined


def on_ranks(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(ranks, *arguments)` returned on each of `size` ranks."""
    port = free_port()
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(_rank, (size, port, queue, work, arguments), nprocs=size)
    return [found for _, found in sorted((queue.get() for _ in range(size)), key=lambda pair: pair[0])]


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def _rank(rank: int, size: int, port: int, queue: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= environment(rank, size, port)
    with joined(timeout=60) as ranks:
        queue.put((rank, work(ranks, *arguments)))


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}


def losses(ranks: Ranks, configs: list[Any], folder: Path) -> list[list[float]]:
    """The loss of every step of each run, summed over the ranks."""
    from redraft.training.setup import set_up
    from redraft.training.trainer import Trainer

    found = []
    for number, config in enumerate(configs):
        trainer = Trainer.start(set_up(config), folder / str(number))
        found.append([ranks.sum([step.loss.item()])[0] for step in trainer.run()])
    return found
