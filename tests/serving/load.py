"""Many clients at once: what they ask, and what became of it. Used by the suite and by benchmarks/serving.py."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redraft.hub.model import Model
from redraft.serving.many import Wanted, written

LETTERS = "abcdefghijklmnopqrstuvwxyz     "


@dataclass(frozen=True)
class Request:
    """`leaves`: seconds after which the client hangs up; None: it stays."""

    body: dict[str, Any]
    leaves: float | None


@dataclass(frozen=True)
class Outcome:
    """`status` 0: the client hung up, or the connection ended before the answer did. `text`: with its prompt."""

    status: int
    text: str
    seconds: float


def requests(names: Sequence[str], count: int, length: int, leaving: float, seed: int = 0) -> list[Request]:
    """Mixed models, prompts, lengths, steps and temperatures; half of them streamed."""
    rng, out = random.Random(seed), []
    for number in range(count):
        before = rng.randrange(0, length // 3)
        body = {
            "model": names[number % len(names)],
            "prompt": "".join(rng.choices(LETTERS, k=before)),
            "max_tokens": rng.randrange(length // 8, length - before + 1),
            "steps": rng.choice([4, 8, 16, 32]),
            "temperature": rng.choice([0.7, 1.0]),
            "seed": number,
            "stream": rng.random() < 0.5,
            "echo": True,
        }
        out.append(Request(body, rng.uniform(0, 0.5) if rng.random() < leaving else None))
    return out


async def ask(port: int, request: Request) -> Outcome:
    """One request on a connection of its own."""
    began, status, text = time.monotonic(), 0, ""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        async with asyncio.timeout(request.leaves):
            data = json.dumps(request.body).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
            status = int((await reader.readline()).split()[1])
            whole = (await reader.read()).decode()
            text = _streamed(whole) if request.body["stream"] and status == 200 else _plain(whole)
    except (TimeoutError, IndexError, ValueError, ConnectionError):
        status = 0
    finally:
        writer.close()
    return Outcome(status, text, time.monotonic() - began)


def _streamed(whole: str) -> str:
    events = [line[6:] for line in whole.splitlines() if line.startswith("data: ")]
    if events[-1] != "[DONE]":
        raise ValueError("a stream that does not end")
    return "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])


def _plain(whole: str) -> str:
    choices = json.loads(whole.partition("\r\n\r\n")[2]).get("choices")
    return choices[0]["text"] if choices else ""


async def all_asked(port: int, wanted: Sequence[Request], clients: int, told: Any = None) -> list[Outcome]:
    """Each of `clients` asks the next request when it has its answer; one that is told to come back (429) does."""
    outcomes: list[Outcome | None] = [None] * len(wanted)
    left = iter(enumerate(wanted))

    async def client() -> None:
        for number, request in left:
            while (found := await ask(port, request)).status == 429:
                await asyncio.sleep(0.1)
            outcomes[number] = found
            if told:
                told(number)

    await asyncio.gather(*(client() for _ in range(clients)))
    return [found for found in outcomes if found is not None]


def as_wanted(model: Model, body: Mapping[str, Any]) -> Wanted:
    before = model.tokenizer.encode(body["prompt"])
    settings = {name: body[name] for name in ("steps", "temperature", "seed")}
    return Wanted(before, body["max_tokens"], before[:0], 0, settings)


def offline(models: Mapping[str, Model], wanted: Sequence[Request], at_once: int) -> tuple[list[str], list[int]]:
    """The texts of the same rows, written in batches without a server; and the tokens of each, up to its end."""
    texts, sizes = [""] * len(wanted), [0] * len(wanted)
    for name, model in models.items():
        own = [number for number, request in enumerate(wanted) if request.body["model"] == name]
        some = [as_wanted(model, wanted[number].body) for number in own]
        for found in written(model, some, at_once):
            texts[own[found.place]], sizes[own[found.place]] = found.text, found.tokens
    return texts, sizes
