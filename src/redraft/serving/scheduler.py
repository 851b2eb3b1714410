"""The thread that owns the networks: requests wait in bounded queues, join the running rows, and leave with their texts.

Everything that touches a network happens in this one thread, between steps or in them. Others submit, cancel and read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

from redraft.hub.model import Model
from redraft.serving.engine import Asked, Engine, Row, on_host, out_of_memory
from redraft.serving.metrics import Metrics
from redraft.serving.writing import Frame, Writing

KEPT = 256  # frames that wait for a client who reads slowly: older ones are dropped
ERRANDS = 32  # scores that wait


class Full(Exception):
    """More waits than may."""


class Closed(Exception):
    """Nothing new is taken: the server ends."""


@dataclass(eq=False)
class Text:
    """One row of a request. `finish` is called in the scheduler's thread on the finished text (for its log-probabilities)."""

    asked: Asked
    writing: Writing
    finish: Callable[[Writing], Any] | None = None
    found: Any = None  # what `finish` returned
    over: bool = False
    seen: int = 0  # frames of the row that were looked at
    began: float = 0.0
    frames: deque[Frame] = field(default_factory=lambda: deque(maxlen=KEPT))


class Job:
    """The texts of one request. `tell` is called from the scheduler's thread when there is something new to read."""

    def __init__(
        self, model: str, texts: list[Text], tell: Callable[[], None], live: bool = False, frames: bool = False
    ):
        self.model, self.texts, self.tell, self.live, self.frames = model, texts, tell, live, frames
        self.error: BaseException | None = None
        self.cancelled, self.seconds = False, 0.0

    @property
    def over(self) -> bool:
        return self.error is not None or all(text.over for text in self.texts)


class Lane:
    """A model's rows at work and those that wait. `most`: how many rows may be at work now, fewer after memory ran out."""

    def __init__(self, model: Model, rows: int, compiled: bool):
        self.model, self.limit, self.compiled = model, rows, compiled
        self.most = rows
        self.waiting: deque[tuple[Job, Text]] = deque()
        self.running: dict[Row, tuple[Job, Text]] = {}
        self.engine = Engine(model, compiled)


class Scheduler(Thread):
    """`rows` at once for each model; at most `queue` texts wait."""

    def __init__(self, models: Mapping[str, Model], rows: int = 64, queue: int = 256, compiled: bool = False):
        super().__init__(name="scheduler", daemon=True)
        self.models, self.queue, self.metrics = dict(models), queue, Metrics()
        self.lanes = {name: Lane(model, rows, compiled) for name, model in models.items()}
        self.errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self.wake, self.closed, self.ended, self.turning = Condition(), False, False, False

    def submit(self, job: Job) -> None:
        """`Full` or `Closed` where it is not taken."""
        with self.wake:
            self._check(sum(len(lane.waiting) for lane in self.lanes.values()) + len(job.texts) > self.queue)
            self.lanes[job.model].waiting.extend((job, text) for text in job.texts)
            self.wake.notify()

    def cancel(self, job: Job) -> None:
        """The rows of a job that is not over are free within a step."""
        if not job.over:
            job.cancelled, lane = True, self.lanes[job.model]
            with self.wake:
                lane.waiting = deque(pair for pair in lane.waiting if pair[0] is not job)
                self.wake.notify()

    def errand(self, function: Callable[[], Any]) -> Future[Any]:
        """Do something with a network between two steps."""
        future: Future[Any] = Future()
        with self.wake:
            self._check(len(self.errands) >= ERRANDS)
            self.errands.append((function, future))
            self.wake.notify()
        return future

    def _check(self, full: bool) -> None:
        if self.closed:
            raise Closed
        if full:
            raise Full

    def close(self) -> None:
        """Take nothing new; what is there is finished."""
        with self.wake:
            self.closed = True
            self.wake.notify()

    def end(self) -> None:
        """Stop as soon as the step that is being made is done."""
        self.close()
        self.ended = True
        with self.wake:
            self.wake.notify()
        self.join()

    @property
    def busy(self) -> bool:
        """Whether there is something to do, or being done."""
        return self.turning or self._left()

    def _left(self) -> bool:
        return bool(self.errands) or any(lane.waiting or lane.running for lane in self.lanes.values())

    def run(self) -> None:
        while not self.ended:
            with self.wake:
                self.turning = False
                while not (self.ended or self._left()):
                    self.wake.wait()
                self.turning = True
            self.turn()
        self.turning = False
        for lane in self.lanes.values():
            self._lose(lane, Closed())

    def turn(self) -> None:
        """An errand, and a step of each model."""
        if self.errands:
            self._run(*self.errands.popleft())
        for lane in self.lanes.values():
            try:
                self._start(lane)
                if lane.engine.rows:
                    lane.engine.step()
                    self.metrics.add("steps")
                self._look(lane)
                self._press(lane)
            except Exception as error:  # of the engine itself: its rows are lost, the server is not
                self._lose(lane, error)
                lane.engine = Engine(lane.model, lane.compiled)

    def _run(self, function: Callable[[], Any], future: Future[Any]) -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _start(self, lane: Lane) -> None:
        """Rows of clients who left go, those that wait join."""
        for row, (job, text) in list(lane.running.items()):
            if job.cancelled or job.error is not None:
                lane.engine.remove(row)
                self._leave(lane, row, text, "cancelled")
        while lane.waiting and len(lane.running) < lane.most:
            with self.wake:
                job, text = lane.waiting.popleft()
            if job.cancelled or job.error is not None:
                text.over = True
                continue
            text.began = time.monotonic()
            row = lane.engine.add(text.asked)
            lane.running[row] = job, text

    def _look(self, lane: Lane) -> None:
        """What the rows wrote is read, in one copy from the device; texts that ended leave."""
        moved = [row for row, (_, text) in lane.running.items() if row.frames > text.seen or row.done]
        told = set[Job]()
        for row, ids in zip(moved, on_host(moved), strict=True):
            job, _ = lane.running[row]
            if self._read(lane, row, ids) or job.live:
                told.add(job)
        for job in told:
            job.tell()

    def _read(self, lane: Lane, row: Row, ids: Any) -> bool:
        """Whether there is something to tell, though the client does not follow along: the text is over."""
        job, text = lane.running[row]
        if row.error is None and job.frames and row.frames > text.seen:
            seconds = time.monotonic() - text.began
            text.frames.append(Frame(row.frames, ids.copy(), row.calls, seconds))
        text.seen = row.frames
        error = row.error
        if error is None:
            if not text.writing.see(ids, row.done):
                return False
            error = self._finished(text)
        lane.engine.remove(row)
        job.error = job.error or error
        self._leave(lane, row, text, "failed" if error else "finished")
        return True

    def _finished(self, text: Text) -> BaseException | None:
        self.metrics.add("tokens", len(text.writing.ids))
        try:
            text.found = text.finish(text.writing) if text.finish else None
        except Exception as error:
            return error
        return None

    def _leave(self, lane: Lane, row: Row, text: Text, how: str) -> None:
        del lane.running[row]
        text.over = True
        self.metrics.add("texts", state=how)
        self.metrics.add("calls", row.denoiser.calls)
        lane.most = min(lane.limit, lane.most + 1)
        if out_of_memory(row.error):
            lane.most = max(1, len(lane.running))

    def _press(self, lane: Lane) -> None:
        """Fewer rows at once where a call had no memory for all."""
        if lane.engine.fits:
            lane.most, lane.engine.fits = lane.engine.fits, 0

    def _lose(self, lane: Lane, error: Exception) -> None:
        for job, text in [*lane.running.values(), *(lane.waiting if self.ended else ())]:
            job.error, text.over = error, True
            job.tell()
        lane.running.clear()
