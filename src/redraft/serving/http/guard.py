"""What stands before every request: its key, the size of its body, and its count; and errors in OpenAI's format."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from redraft.errors import UserError
from redraft.serving.engine import out_of_memory
from redraft.serving.http import page
from redraft.serving.http.address import loopback
from redraft.serving.jobs import Closed, Full
from redraft.serving.metrics import Metrics

BODY = 1 << 20  # bytes
HEARD = 32 << 20  # bytes of a body that is too large
PATIENCE = 60  # seconds for a body to arrive
PATHS = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/score", "/health", "/metrics", "/openapi.json")
OPEN = ("/health", *page.PATHS)  # without a key
Answer = tuple[int, dict[str, Any], dict[str, str]]  # status, JSON, headers


def failure(status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None) -> Answer:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, kind)
    said = {"message": message[:1000], "type": kind, "param": None, "code": code}
    return status, {"error": said}, dict(headers or {})


def explained(error: BaseException) -> Answer:
    """What a client is told of an error."""
    if isinstance(error, UserError):
        return failure(400, str(error))
    if isinstance(error, Full):
        return failure(429, "too many requests wait: try again in a second", "queue_full", {"Retry-After": "1"})
    if isinstance(error, Closed):
        return failure(503, "the server is about to end and takes nothing new", "closing", {"Retry-After": "5"})
    if out_of_memory(error):
        told = "there was no memory for this text beside the others: try again later, or ask for fewer tokens"
        return failure(503, told, "out_of_memory", {"Retry-After": "2"})
    return failure(500, f"the text could not be written ({type(error).__name__})")


class Guard:
    """ASGI middleware: refuses bodies above `BODY` bytes (413) and requests without the `key` (401) or, if there is
    none, for another machine's name (403). Counts answers."""

    def __init__(self, app: Any, key: str | None, metrics: Metrics):
        self.app, self.key, self.metrics = app, key, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.monotonic(), 499  # a client who left before its answer began

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._guarded(scope, receive, counted)
        except Exception:
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in (*PATHS, *page.PATHS) else "other"
            self.metrics.add("requests", path=path, status=status)
            self.metrics.took(time.monotonic() - began)

    async def _guarded(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"localhost").decode("latin-1")
        if self.key is None and not loopback(re.sub(r":\d*$", "", host).strip("[]")):
            # a page of the web whose name was made to lead here
            return await answered(send, failure(403, f"this server is not {host}: it is for this machine alone"))
        if self.key is not None and scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.key.encode()):
                return await answered(send, failure(401, "this server asks for its API key", "invalid_api_key"))
        try:
            body = await asyncio.wait_for(read_body(receive, headers), PATIENCE)
        except TimeoutError:
            told = f"the request did not arrive within {PATIENCE} seconds"
            return await answered(send, failure(408, told, "timeout", {"Connection": "close"}))
        if body is None:
            told = f"a request may have at most {BODY} bytes"
            return await answered(send, failure(413, told, "too_large", {"Connection": "close"}))

        async def again() -> Any:
            nonlocal body
            if body is None:
                return await receive()
            whole, body = body, None
            return {"type": "http.request", "body": whole, "more_body": False}

        return await self.app(scope, again, send)


async def read_body(receive: Any, headers: Mapping[bytes, bytes]) -> bytes | None:
    """The whole body; None where it is too large. Of such a one nothing is kept, but a good part is read: most clients look
    for an answer only when they have sent all."""
    said = headers.get(b"content-length", b"0")
    if said.isdigit() and int(said[:20]) > HEARD:
        return None
    parts, size, more = list[bytes](), 0, True
    while more and size <= HEARD:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        parts = [*parts, message.get("body", b"")] if size <= BODY else []
    return b"".join(parts) if size <= BODY else None


async def answered(send: Any, answer: Answer) -> None:
    status, content, headers = answer
    body = dumped(content)
    told = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def dumped(content: Any) -> bytes:
    """Strict JSON in ASCII: half of a surrogate pair in a request's name is told as it came."""
    return json.dumps(content, allow_nan=False).encode()
