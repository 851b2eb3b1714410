"""Device, precision and compilation of an evaluation, as chosen by flags and as recorded in every result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from redraft.hub.model import Model, load
from redraft.network.device import device_name, pick_device, pick_dtype


@dataclass(frozen=True)
class Compute:
    """The device, precision and compilation asked for. `compiled` is for sampling: it changes speed and rounding."""

    device: str = "auto"
    precision: str = "float32"
    compiled: bool = False

    def here(self) -> Compute:
        """With the device named that "auto" is. `UserError` where something is not to be had on this machine."""
        pick_dtype(self.precision)
        return replace(self, device=str(pick_device(self.device)))

    def load(self, folder: str | Path) -> Model:
        return load(folder, self.device, self.precision)

    def record(self, model: Model) -> dict[str, Any]:
        return recorded(model.device, self.precision, self.compiled)


AUTO = Compute()


def recorded(device: torch.device | str, precision: str, compiled: bool | str = False) -> dict[str, Any]:
    """What a result says of where it was computed. Results written before they said so are of a CPU, float32, not compiled,
    which readers take for granted where the keys are missing."""
    device = torch.device(device)
    return {"device": str(device), "device_name": device_name(device), "precision": precision, "compiled": compiled}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given; a clock may be read then."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
