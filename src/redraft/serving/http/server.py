"""uvicorn around the application: bound before models are loaded, and ended in order by SIGTERM."""

from __future__ import annotations

import socket
import sys
from types import FrameType
from typing import Any

import uvicorn

from redraft.serving.scheduler import Scheduler

GRACE = 5  # seconds that answers may still be under way when all texts are finished
CONNECTIONS = 2048
SWITCH = 5e-4  # seconds after which a thread hands the interpreter to one that waits: a step of a small network takes as long


class Serving(uvicorn.Server):
    """A first signal: what runs is finished, what is new is refused (503), then it ends. A second one: it ends at once."""

    def __init__(self, app: Any, scheduler: Scheduler):
        config = uvicorn.Config(
            app, log_level="warning", lifespan="off", timeout_graceful_shutdown=GRACE, ws="none", server_header=False,
            limit_concurrency=CONNECTIONS,
        )  # fmt: skip
        super().__init__(config)
        self.scheduler = scheduler

        self.asked = 0  # signals

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Only noted: the thread that a signal interrupts may hold the scheduler's lock."""
        self.asked += 1

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self.asked and not self.scheduler.closed:
            self.scheduler.close()
        self.force_exit = self.force_exit or self.asked > 1
        finished = self.asked > 0 and not self.scheduler.busy
        return await super().on_tick(counter) or finished or self.force_exit


def serve(app: Any, scheduler: Scheduler, listening: socket.socket) -> None:
    """Until a signal ends it."""
    sys.setswitchinterval(SWITCH)
    scheduler.start()
    server = Serving(app, scheduler)
    try:
        server.run(sockets=[listening])
    finally:
        scheduler.end()
