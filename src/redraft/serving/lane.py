"""The thread that owns one network: texts wait in a queue, join the running rows, and leave when they are written.

Everything that touches the network happens in this one thread, between steps or in them. Others submit, cancel and read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Any

from redraft.hub.model import Model
from redraft.serving.engine import Engine, Row, on_host, out_of_memory
from redraft.serving.jobs import Closed, Full, Job, Text
from redraft.serving.metrics import Metrics
from redraft.serving.turns import Turns
from redraft.serving.writing import Frame

ERRANDS = 32  # scores that wait


class Lane(Thread):
    """A model's rows at work and those that wait. `limit`: rows at once; `most`: how many may be at work now, fewer after
    memory ran out."""

    def __init__(self, model: Model, rows: int, compiled: bool, metrics: Metrics, turns: Turns):
        super().__init__(name="lane", daemon=True)
        self.model, self.limit, self.most, self.compiled, self.metrics = model, rows, rows, compiled, metrics
        self.turns = turns
        self.waiting: deque[tuple[Job, Text]] = deque()
        self.running: dict[Row, tuple[Job, Text]] = {}
        self.errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self.engine = Engine(model, compiled)
        self.wake, self.closed, self.ended, self.turning = Condition(), False, False, False

    def submit(self, job: Job) -> None:
        with self.wake:
            self._check_open()
            self.waiting.extend((job, text) for text in job.texts)
            self.wake.notify()

    def cancel(self, job: Job) -> None:
        """The rows of a job that is not over are free within a step."""
        if not job.over:
            job.cancelled = True
            with self.wake:
                self.waiting = deque(pair for pair in self.waiting if pair[0] is not job)
                self.wake.notify()

    def errand(self, function: Callable[[], Any]) -> Future[Any]:
        """Do something with the network between two steps. `Full` or `Closed` where it is not taken."""
        future: Future[Any] = Future()
        with self.wake:
            self._check_open()
            if len(self.errands) >= ERRANDS:
                raise Full
            self.errands.append((function, future))
            self.wake.notify()
        return future

    def _check_open(self) -> None:
        if self.closed:
            raise Closed

    def close(self, now: bool = False) -> None:
        """Take nothing new; what is there is finished, or, `now`, lost as soon as the step that is being made is done."""
        with self.wake:
            self.closed, self.ended = True, self.ended or now
            self.wake.notify()

    @property
    def busy(self) -> bool:
        """Whether there is something to do, or being done."""
        return self.turning or self._left()

    def _left(self) -> bool:
        return bool(self.errands or self.waiting or self.running)

    def run(self) -> None:
        while not self.ended:
            with self.wake:
                self.turning = False
                while not (self.ended or self._left()):
                    self.wake.wait()
                self.turning = True
            with self.turns:
                self.turn()
        self.turning = False
        self._lose(Closed())

    def turn(self) -> None:
        """An errand, and a step of the rows."""
        if self.errands:
            self._run(*self.errands.popleft())
        try:
            self._start()
            if self.engine.rows:
                self.engine.step()
                self.metrics.add("steps")
            self._look()
            self._press()
        except Exception as error:  # of the engine itself: its rows are lost, the server is not
            self._lose(error)
            self.engine = Engine(self.model, self.compiled)

    def _run(self, function: Callable[[], Any], future: Future[Any]) -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _start(self) -> None:
        """Rows of clients who left go, those that wait join."""
        for row, (job, text) in list(self.running.items()):
            if job.cancelled or job.error is not None:
                self.engine.remove(row)
                self._leave(row, text, "cancelled")
        while len(self.running) < self.most and (next_one := self._taken()):
            job, text = next_one
            if job.cancelled or job.error is not None:
                text.over = True
                continue
            text.began = time.monotonic()
            row = self.engine.add(text.asked)
            self.running[row] = job, text

    def _taken(self) -> tuple[Job, Text] | None:
        with self.wake:
            return self.waiting.popleft() if self.waiting else None

    def _look(self) -> None:
        """What the rows wrote is read, in one copy from the device; texts that ended leave."""
        moved = [row for row, (_, text) in self.running.items() if row.frames > text.seen or row.done]
        told = set[Job]()
        for row, ids in zip(moved, on_host(moved), strict=True):
            job, _ = self.running[row]
            if self._read(row, ids):
                told.add(job)
        for job in told:
            job.tell()

    def _read(self, row: Row, ids: Any) -> bool:
        """Whether there is something to tell: the text is over, or a client who follows along has more to read."""
        job, text = self.running[row]
        framed, before = row.error is None and job.frames and row.frames > text.seen, text.writing.text
        if framed:
            seconds = time.monotonic() - text.began
            text.frames.append(Frame(row.frames, ids.copy(), row.calls, seconds))
        text.seen = row.frames
        error = row.error
        if error is None:
            if not text.writing.see(ids, row.done):
                return framed or (job.live and text.writing.text != before)
            error = self._finished(text)
        self.engine.remove(row)
        job.error = job.error or error
        self._leave(row, text, "failed" if error else "finished")
        return True

    def _finished(self, text: Text) -> BaseException | None:
        self.metrics.add("tokens", len(text.writing.ids))
        try:
            text.found = text.finish(text.writing) if text.finish else None
        except Exception as error:
            return error
        return None

    def _leave(self, row: Row, text: Text, how: str) -> None:
        del self.running[row]
        text.over = True
        self.metrics.add("texts", state=how)
        self.metrics.add("calls", row.denoiser.calls)
        self.most = min(self.limit, self.most + 1)
        if out_of_memory(row.error):
            self.most = max(1, len(self.running))

    def _press(self) -> None:
        """Fewer rows at once where a call had no memory for all."""
        if self.engine.fits:
            self.most, self.engine.fits = self.engine.fits, 0

    def _lose(self, error: Exception) -> None:
        for job, text in [*self.running.values(), *(self.waiting if self.ended else ())]:
            job.error, text.over = error, True
            job.tell()
        self.running.clear()
