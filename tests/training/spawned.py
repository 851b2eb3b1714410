"""Real ranks for tests: processes over gloo, each of which runs one function of this package's tests."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.training.distributed.ranks import Ranks, joined
from tests.processes import CONTEXT, ended, start


def on_ranks(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(ranks, *arguments)` returned on each of `size` ranks."""
    port, queue = free_port(), CONTEXT.SimpleQueue()
    ranks = [start(_rank, queue, work, arguments, **environment(rank, size, port)) for rank in range(size)]
    found = dict(queue.get() for _ in range(size))
    assert [ended(rank) for rank in ranks] == [0] * size
    return [_value(found[rank]) for rank in range(size)]


def _value(found: Any) -> Any:
    if isinstance(found, _Failed):
        raise AssertionError(found.text)
    return found


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def _rank(queue: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    rank = int(os.environ["RANK"])
    try:
        with joined(timeout=60) as ranks:
            queue.put((rank, work(ranks, *arguments)))
    except BaseException:
        queue.put((rank, _Failed(traceback.format_exc())))
        os._exit(0)  # the others may wait for this one: they time out, and say so


@dataclass(frozen=True)
class _Failed:
    text: str


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
