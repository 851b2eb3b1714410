"""What a process does with a hub. Nothing here imports the hub's library, which reads where its hub is when it is imported."""

from __future__ import annotations

import json

import torch
from torch import Tensor

import redraft
from redraft.errors import UserError
from redraft.hub.model import Model
from tests.rounding import in_float64


def told(model: Model) -> Tensor:
    in_float64(model.network)
    return model.log_p(torch.arange(12)[None])[0, :, :3]


def load(name: str) -> None:
    print(json.dumps(told(redraft.load(name, "cpu")).tolist()))


def refused(name: str) -> None:
    from redraft.hub.remote import fetch

    try:
        fetch(name)
    except UserError as error:
        print(json.dumps(str(error)))
