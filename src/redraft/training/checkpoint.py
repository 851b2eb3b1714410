"""Resumable state in one safetensors file: weights, AdamW moments, moving average, teacher, step. Whole or absent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from redraft.errors import UserError
from redraft.files import write_tensors

STATE = "state.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save(
    path: Path,
    step: int,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: list[Tensor],
    teacher: nn.Module | None = None,
) -> None:
    """After `step` steps."""
    tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in network.named_parameters()}
    for name, parameter in _trained(network):
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    if average:
        tensors |= {f"ema.{name}": mean for (name, _), mean in zip(network.named_parameters(), average, strict=True)}
    if teacher is not None:
        tensors |= {f"teacher.{name}": p for name, p in teacher.named_parameters()}
    metadata = {"format": "pt", "step": str(step)}
    write_tensors(path, tensors, metadata)


def load(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: list[Tensor],
    teacher: nn.Module | None = None,
) -> int:
    """Fill everything in place; returns the steps done. `UserError` where the file is not this run's whole state."""
    try:
        with safe_open(path, "pt") as file, torch.no_grad():
            for number, (name, parameter) in enumerate(network.named_parameters()):
                parameter.copy_(file.get_tensor(f"model.{name}"))
                if average:
                    average[number].copy_(file.get_tensor(f"ema.{name}"))
            for name, parameter in _trained(network):
                moments = {m: file.get_tensor(f"{m}.{name}").to(parameter.device) for m in _MOMENTS}
                step = torch.tensor(float(file.metadata()["step"]), device=parameter.device)
                optimizer.state[parameter] = {"step": step, **moments}
            for name, parameter in teacher.named_parameters() if teacher is not None else ():
                parameter.copy_(file.get_tensor(f"teacher.{name}"))
            return int(file.metadata()["step"])
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} is not a whole checkpoint of this run ({error}); delete it to start over") from None


def _trained(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad)
