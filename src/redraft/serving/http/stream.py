"""Server-sent events: what each text of a request has grown by, as soon as it can no longer change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from redraft.serving.http.guard import dumped, explained
from redraft.serving.http.replies import Reply
from redraft.serving.jobs import Job

DONE = b"data: [DONE]\n\n"


class Followed:
    """What was sent of one text."""

    def __init__(self, job: Job, number: int, reply: Reply):
        self.text, self.number, self.reply = job.texts[number], number, reply
        self.sent, self.first, self.ended = 0, True, False

    def news(self) -> Iterator[dict[str, Any]]:
        """Its frames, then what it has grown by."""
        over, whole = self.text.over, self.text.writing.text  # in this order: the text is complete when it is over
        while self.text.frames:
            yield self._chunk("", False, self.text.frames.popleft())
        if not self.ended and (over or len(whole) > self.sent or self.first):
            delta, self.sent, self.ended = whole[self.sent :], len(whole), over
            yield self._chunk(delta, over)

    def _chunk(self, delta: str, over: bool, frame: Any = None) -> dict[str, Any]:
        first, self.first = self.first, False
        return self.reply.chunk(self.number, delta, first, over, frame)


async def events(job: Job, changed: asyncio.Event, reply: Reply, count: bool) -> AsyncIterator[bytes]:
    """The chunks of a stream. An error in the middle is an event of its own."""
    followed = [Followed(job, number, reply) for number in range(len(job.texts))]
    while True:
        await changed.wait()
        changed.clear()
        over = job.over
        for chunk in (chunk for one in followed for chunk in one.news()):
            yield event(chunk)
        if job.error is not None:
            yield event(explained(job.error)[1])
        if over:
            break
    if count and job.error is None:
        yield event(reply.last())
    yield DONE


def event(content: Any) -> bytes:
    return b"data: " + dumped(content) + b"\n\n"
