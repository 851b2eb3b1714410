"""Several models on one command line: folders, or NAME=FOLDER where two would have one name. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from redraft.errors import UserError
from redraft.hub.config import located, read_config

HELP = "a run folder, an exported model folder or owner/name; or NAME=MODEL"


def named(models: Sequence[str]) -> dict[str, Path]:
    """The folder of each model by its name, its own if none was given. `UserError` where one is no model, or two share a
    name."""
    places = dict[str, Path]()
    for given in models:
        name, equals, spec = given.partition("=")
        spec = spec if equals else given
        name = name if equals else Path(spec).resolve().name
        if name in places or not name:
            raise UserError(f"two models are called {name!r}: give one another name, NAME={spec}")
        places[name] = located(spec)
        read_config(places[name])
    return places
