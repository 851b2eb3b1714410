"""The HTTP endpoints: OpenAI's completions, chat and models, and score, health and metrics."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from redraft.errors import UserError, unknown
from redraft.hub.model import Model
from redraft.registry import FAMILIES, SAMPLERS
from redraft.serving.http.asking import Asking, Limits, asked_chat, asked_completion, checked_score
from redraft.serving.http.guard import Answer, Guard, dumped, explained, failure
from redraft.serving.http.page import show_page
from redraft.serving.http.replies import Reply
from redraft.serving.http.schema import Chat, Completion, Scored, Writes
from redraft.serving.http.stream import events
from redraft.serving.jobs import Closed, Full, Job
from redraft.serving.scheduler import Scheduler
from redraft.text.examples.chat import compiled


class Gone(Exception):
    """The client left."""


class Server:
    """What the endpoints share. `templates`: the chat template of each model, as Jinja text."""

    def __init__(self, scheduler: Scheduler, limits: Limits, templates: Mapping[str, str]):
        self.scheduler, self.limits, self.created = scheduler, limits, int(time.time())
        self.templates = {name: compiled(text, f"of {name}") for name, text in templates.items()}

    def model(self, name: str) -> Model:
        if name not in self.scheduler.models:
            raise HTTPException(404, str(unknown("model", name[:200], self.scheduler.models)))
        return self.scheduler.models[name]

    async def write(self, request: Writes, asking: Asking, reply: Reply, client: Request) -> Response:
        """Have the texts written; whole, or as a stream, which begins when the first step has succeeded."""
        changed, loop = asyncio.Event(), asyncio.get_running_loop()

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)

        job = Job(request.model, asking.texts, tell, request.stream, request.frames)
        self.scheduler.submit(job)
        try:
            while not (job.over or (request.stream and changed.is_set())):
                await self._wait(changed, client, keep=request.stream)
        except BaseException:
            self.scheduler.cancel(job)
            raise
        if job.error is not None:
            return _json(explained(job.error))
        if not request.stream:
            return _json((200, reply.whole(), {}))
        count = request.stream_options is not None and request.stream_options.include_usage
        return Events(self.scheduler, job, events(job, changed, reply, count))

    async def _wait(self, changed: asyncio.Event, client: Request, keep: bool) -> None:
        """Until something changes; `Gone` if the client leaves first."""
        waits = [asyncio.ensure_future(changed.wait()), asyncio.ensure_future(_left(client))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not changed.is_set():
                raise Gone
            if not keep:
                changed.clear()
        finally:
            for wait in waits:
                wait.cancel()


async def _left(client: Request) -> None:
    while (await client.receive())["type"] != "http.disconnect":
        pass


class Events(StreamingResponse):
    """Server-sent events of a job, whose rows are given back however the response ends."""

    def __init__(self, scheduler: Scheduler, job: Job, chunks: AsyncIterator[bytes]):
        super().__init__(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.scheduler, self.job = scheduler, job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.scheduler.cancel(self.job)


def create_app(scheduler: Scheduler, limits: Limits, templates: Mapping[str, str], key: str | None = None) -> FastAPI:
    """The application. No request makes it read a file."""
    app = FastAPI(title="redraft", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, key=key, metrics=scheduler.metrics)
    _errors(app)
    server = Server(scheduler, limits, templates)
    _writing(app, server)
    _knowing(app, server)
    show_page(app)
    _document(app, scheduler, limits)
    return app


def _document(app: FastAPI, scheduler: Scheduler, limits: Limits) -> None:
    """What this server allows, in its OpenAPI document: the models by name, and the bounds it was started with."""
    most = {"steps": limits.steps, "n": limits.texts}
    for schema in app.openapi()["components"]["schemas"].values():
        for name, field in schema.get("properties", {}).items():
            if name == "model":
                field["enum"] = sorted(scheduler.models)
            if name in most:
                field["maximum"] = most[name]


def _writing(app: FastAPI, server: Server) -> None:
    @app.post("/v1/completions")
    async def completions(request: Completion, client: Request) -> Response:
        model = server.model(request.model)
        asking = asked_completion(model, request, server.limits)
        return await server.write(request, asking, Reply(model, request.model, asking, False, request.echo), client)

    @app.post("/v1/chat/completions")
    async def chat(request: Chat, client: Request) -> Response:
        model = server.model(request.model)
        asking = asked_chat(model, request, server.limits, server.templates[request.model])
        return await server.write(request, asking, Reply(model, request.model, asking, True), client)

    @app.post("/v1/score")
    async def score(request: Scored) -> Response:
        model = server.model(request.model)
        errand = server.scheduler.errand(request.model, checked_score(model, request, server.limits))
        try:
            found = await asyncio.wrap_future(errand)
        except Exception as error:
            return _json(explained(error))
        deviation = found.standard_error if math.isfinite(found.standard_error) else None  # one draw does not tell
        said = {"nats": found.nats, "standard_error": deviation, "exact": found.exact, "tokens": found.tokens}
        said |= {"bytes": found.bytes, "bits_per_byte": found.bits_per_byte}
        return _json((200, {"object": "score", "model": request.model, **said}, {}))


def _knowing(app: FastAPI, server: Server) -> None:
    scheduler = server.scheduler

    @app.get("/v1/models")
    async def models() -> Response:
        listed = [described(name, model, server) for name, model in scheduler.models.items()]
        return _json((200, {"object": "list", "data": listed}, {}))

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        return _json((200, described(name, server.model(name), server), {}))

    @app.get("/health")
    async def health() -> Response:
        alive = scheduler.is_alive()
        state = "closing" if scheduler.closed else "ok" if alive else "dead"
        return _json((200 if state == "ok" else 503, {"status": state}, {}))

    @app.get("/metrics")
    async def metrics() -> Response:
        lanes = scheduler.lanes.values()
        now = {"waiting": sum(len(lane.waiting) for lane in lanes), "running": sum(len(lane.running) for lane in lanes)}
        return PlainTextResponse(scheduler.metrics.text(now), media_type="text/plain; version=0.0.4")


def described(name: str, model: Model, server: Server) -> dict[str, Any]:
    """OpenAI's fields, and what a client needs to know to ask: the family, its own sampler and the others that fit, with
    whether they have steps, the context, the id that ends a text, and whether it can only write from left to right."""
    family = model.family
    fitting = {n: "steps" in entry.options for n, entry in SAMPLERS.items() if not entry.load()().refusal(family)}
    own = {"family": family.name, "sampler": family.sampler, "samplers": fitting, "context": server.limits.of(model)}
    own |= {"end": model.tokenizer.eos, "left_to_right": FAMILIES[family.name].causal}
    return {"id": name, "object": "model", "created": server.created, "owned_by": "redraft", **own}


def _errors(app: FastAPI) -> None:
    def refused(request: Request, error: Exception) -> Response:
        return _json(explained(error))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        parts = [str(part)[:100] for part in first["loc"][1:]]
        place = ".".join(part for part in parts if part != "str" and "[" not in part)  # not the branches of a union
        return _json(failure(400, f"{place or 'the body'}: {first['msg']}"))

    async def http(request: Request, error: HTTPException) -> Response:
        code = "model_not_found" if str(error.detail).startswith("unknown model") else None
        return _json(failure(error.status_code, str(error.detail), code, error.headers))

    for kind in (UserError, Full, Closed):
        app.exception_handler(kind)(refused)
    app.exception_handler(Gone)(gone)
    app.exception_handler(RequestValidationError)(malformed)
    app.exception_handler(HTTPException)(http)
    app.exception_handler(Exception)(refused)


def _json(answer: Answer) -> Response:
    status, content, headers = answer
    return Response(dumped(content), status, headers, "application/json")
