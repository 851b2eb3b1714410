"""The plan of a conversion: every target tensor and where it comes from, decided before a tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from redraft.errors import UserError
from redraft.hub.lazy_tensor import FLOATS, LazyTensor, Target
from redraft.network.sizes import Shape

NAMED = 12  # tensors named in one message


@dataclass(frozen=True)
class Choices:
    """What the user says; None: read it off the checkpoint. `mask` -1: there is none."""

    family: str | None = None
    heads: int | None = None
    mask: int | None = None
    bos: int | None = None
    length: int | None = None
    raw: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A model of ours and where its tensors come from.

    `mask`: the checkpoint's own id of [MASK], None where it has none. `silent`: ids that are never predicted, whose logits
    are not those of the checkpoint.
    """

    format: str
    family: str
    options: dict[str, Any]
    shape: Shape
    length: int
    targets: dict[str, Target]
    mask: int | None
    silent: tuple[int, ...]
    notes: list[str]


def check_tensors(path: Path, have: Mapping[str, LazyTensor], want: Mapping[str, tuple[int, ...]]) -> None:
    """`UserError` that names every tensor which is missing, extra, of another shape, or of no floating-point format."""
    faults = [f"lacks {name} {list(shape)}" for name, shape in want.items() if name not in have]
    faults += [
        f"has {name} {list(tensor.shape)}, which the format has not"
        for name, tensor in have.items()
        if name not in want
    ]
    for name, shape in want.items():
        if name in have and have[name].shape != shape:
            faults.append(f"has {name} of shape {list(have[name].shape)}, not {list(shape)}")
        elif name in have and have[name].dtype not in FLOATS:
            faults.append(
                f"has {name} in {str(have[name].dtype).removeprefix('torch.')}, which is no format of weights"
            )
    if faults:
        more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise UserError(f"{path} {'; '.join(faults[:NAMED])}{more}")


def spare_of(tensor: LazyTensor) -> torch.Tensor:
    """One row of zeros, in the tensor's own format."""
    return torch.zeros(1, *tensor.shape[1:], dtype=tensor.dtype)
