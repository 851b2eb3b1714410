"""Serve models over HTTP, as OpenAI's clients speak to it: completions, chat, scores; docs/serving.md has the fields.

redraft serve runs/first runs/second                                (and a page at / that shows them writing side by side)
curl localhost:8000/v1/completions -H 'Content-Type: application/json' -d '{"model": "first", "prompt": "def "}'
redraft serve --host 0.0.0.0 --api-key KEY NAME=runs/first          (for others: with a key; under a name of its own)

SIGTERM or Ctrl-C: what is being written is finished, what is new is refused; a second time: at once.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from redraft.commands import device_flags
from redraft.commands.named import HELP, named
from redraft.display import emit
from redraft.errors import UserError
from redraft.numbers import WIDEST, whole

NEEDED = ("fastapi", "uvicorn", "greenlet")


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help=HELP)
    parser.add_argument("--host", default="127.0.0.1", help="other than this machine alone: with --api-key")
    parser.add_argument("--port", type=whole(0, 65535), default=8000, help="0: any that is free")
    parser.add_argument("--api-key", help="what clients must send; REDRAFT_API_KEY if left out")
    parser.add_argument("--rows", type=whole(1, 4096), default=64, help="texts written at once by each model")
    parser.add_argument("--queue", type=whole(1, WIDEST), default=256, help="texts that may wait; beyond: status 429")
    parser.add_argument(
        "--max-length", type=whole(1, WIDEST), help="tokens of a canvas; those of a row in training if left out"
    )
    parser.add_argument("--max-steps", type=whole(1, WIDEST), default=4096, help="of a sampler")
    parser.add_argument(
        "--chat-template", help="vicuna, chatml, plain or a Jinja file; the model's own if left out, else plain"
    )
    device_flags.arguments(parser, samples=True)
    parser.add_argument("--json", action="store_true", help="say as JSON where it listens")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    key = options.api_key or os.environ.get("REDRAFT_API_KEY") or None
    places = check(options, key)
    from redraft.serving.http.address import bound

    listening = bound(options.host, options.port)
    from redraft.serving.http.api import create_app
    from redraft.serving.http.asking import Limits
    from redraft.serving.http.server import serve
    from redraft.serving.scheduler import Scheduler

    compute = device_flags.compute(options)
    models = {name: compute.load(folder) for name, folder in places.items()}
    share_threads(len(models))
    scheduler = Scheduler(models, options.rows, options.queue, compute.compiled)
    limits = Limits(options.max_length or 0, options.max_steps, min(options.rows, options.queue))
    app = create_app(scheduler, limits, templates(options, places), key)
    listening.listen(2048)  # who connects now is answered in a moment
    url = f"http://{options.host}:{listening.getsockname()[1]}"
    if options.json:
        emit({"url": url, "models": {name: model.family.name for name, model in models.items()}})
    else:
        said = ", ".join(f"{name} ({model.family.name})" for name, model in models.items())
        print(f"Serving {said} at {url}", file=sys.stderr)
    sys.stdout.flush()
    serve(app, scheduler, listening)


def share_threads(models: int) -> None:
    """Each model has a thread of its own (serving/lane.py), so each gets its share of the cores."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // models))


def check(options: Namespace, key: str | None) -> dict[str, Path]:
    """The folder of each model by its name, or what is wrong, before torch is loaded."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(f"serving needs the package {missing[0]!r}: pip install 'redraft[serve]'")
    from redraft.serving.http.address import loopback

    if not loopback(options.host) and not key:
        raise UserError(f"--host {options.host} lets others in: give --api-key too, or leave --host out")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError("--api-key must be printable ASCII characters without spaces: it is sent in a header")
    from redraft.text.examples.chat import template

    if options.chat_template:
        template(options.chat_template)
    return named(options.models)


def templates(options: Namespace, places: dict[str, Path]) -> dict[str, str]:
    """The Jinja text of each model's chat template: the one asked for, else the folder's own file, else the one that the
    model was trained with, else `plain`."""
    from redraft.hub.config import read_config
    from redraft.text.examples.chat import source

    def own(folder: Path) -> str:
        if (file := folder / "chat_template.jinja").is_file():
            return source(str(file))
        return read_config(folder).record.get("data", {}).get("chat_template") or source("plain")

    return {name: source(options.chat_template) if options.chat_template else own(at) for name, at in places.items()}
