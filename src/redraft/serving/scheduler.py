"""A thread for each network (`Lane`), under one bound of what waits: a slow model holds up none of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from redraft.hub.model import Model
from redraft.serving.jobs import Full, Job
from redraft.serving.lane import Lane
from redraft.serving.metrics import Metrics
from redraft.serving.turns import Turns, turns_at_once


class Scheduler:
    """`rows` at once for each model; at most `queue` texts wait, for all models together."""

    def __init__(self, models: Mapping[str, Model], rows: int = 64, queue: int = 256, compiled: bool = False):
        self.models, self.queue, self.metrics = dict(models), queue, Metrics()
        turns = Turns(turns_at_once([model.device for model in models.values()]))
        self.lanes = {name: Lane(model, rows, compiled, self.metrics, turns) for name, model in models.items()}

    def start(self) -> None:
        for lane in self.lanes.values():
            lane.start()

    def is_alive(self) -> bool:
        return all(lane.is_alive() for lane in self.lanes.values())

    def submit(self, job: Job) -> None:
        """`Full` or `Closed` where it is not taken. Jobs are submitted by one thread."""
        if not self.closed and sum(len(lane.waiting) for lane in self.lanes.values()) + len(job.texts) > self.queue:
            raise Full
        self.lanes[job.model].submit(job)

    def cancel(self, job: Job) -> None:
        """The rows of a job that is not over are free within a step."""
        self.lanes[job.model].cancel(job)

    def errand(self, model: str, function: Callable[[], Any]) -> Future[Any]:
        """Do something with the network of a model between two steps. `Full` or `Closed` where it is not taken."""
        return self.lanes[model].errand(function)

    @property
    def closed(self) -> bool:
        return any(lane.closed for lane in self.lanes.values())

    @property
    def busy(self) -> bool:
        """Whether there is something to do, or being done."""
        return any(lane.busy for lane in self.lanes.values())

    def close(self, now: bool = False) -> None:
        """Take nothing new; what is there is finished, or, `now`, lost as soon as the steps that are being made are done."""
        for lane in self.lanes.values():
            lane.close(now)

    def end(self) -> None:
        """Stop, now."""
        self.close(now=True)
        for lane in self.lanes.values():
            lane.join()
