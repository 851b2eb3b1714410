"""Small models with random weights behind a server in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from redraft.hub.model import Model, load
from redraft.serving.http.address import bound
from redraft.serving.http.api import create_app
from redraft.serving.http.asking import Limits
from redraft.serving.http.server import Serving
from redraft.serving.scheduler import Scheduler
from redraft.text.examples.chat import source
from tests.hub.models import folder

FAMILIES = ("ar", "mdlm", "duo", "esolm", "bd3lm")


def models(into: Path, names: tuple[str, ...] = FAMILIES) -> dict[str, Model]:
    """Loaded from folders; in float64, so that no rounding of company decides a draw."""
    found = {name: load(folder(into / name, name, "dit"), "cpu") for name in names}
    for model in found.values():
        model.network.double()
        model.network.compute = torch.float64
    return found


@dataclass
class Served:
    url: str
    scheduler: Scheduler
    server: Serving
    thread: threading.Thread


@contextmanager
def served(
    loaded: Mapping[str, Model], rows: int = 16, queue: int = 64, limits: Limits | None = None, key: str | None = None
) -> Iterator[Served]:
    scheduler = Scheduler(loaded, rows, queue)
    app = create_app(scheduler, limits or Limits(), dict.fromkeys(loaded, source("plain")), key)
    listening = bound("127.0.0.1", 0)
    server = Serving(app, scheduler)
    scheduler.start()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    wait(lambda: server.started)
    try:
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", scheduler, server, thread)
    finally:
        server.should_exit = True
        thread.join(20)
        scheduler.end()


def wait(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def offline(model: Model, prompt: str, new: int, number: int = 0, suffix: str = "", **settings: Any) -> str:
    """What `Model.sample` writes in row `number`, prompt included."""
    texts = model.sample(prompt, number + 1, len(prompt) + new + len(suffix), suffix=suffix, **settings)
    assert isinstance(texts, list)
    return texts[number]
