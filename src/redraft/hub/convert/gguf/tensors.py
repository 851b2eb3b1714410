"""The tensors of a GGUF file, quantised ones made numbers by the package `gguf` as they are read, a few rows at a time."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft.errors import UserError, require
from redraft.hub.convert.gguf.header import Described, Header
from redraft.hub.lazy_tensor import LazyTensor, Packed, contiguous

PLAIN = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}  # GGML's numbers of types


def lazy_tensors(path: Path, header: Header) -> dict[str, LazyTensor]:
    """By GGUF's names. `UserError` for a type that is not known, and where tensors overlap or lie outside the file."""
    out, places, size = {}, list[tuple[int, int, str]](), path.stat().st_size
    for name, described in header.tensors.items():
        out[name], length = _tensor(path, name, described)
        places.append((described.offset, described.offset + length, name))
    places.sort()
    for (_, end, name), (start, _, other) in pairwise(places):
        if start < end:
            raise UserError(f"{path} is refused: its tensors {name!r} and {other!r} overlap")
    if places and places[-1][1] > size:
        raise UserError(f"{path} ends before its tensors do: it was not copied whole")
    return out


def _tensor(path: Path, name: str, told: Described) -> tuple[LazyTensor, int]:
    """The tensor and its bytes."""
    if told.kind in PLAIN:
        made = contiguous(path, told.offset, PLAIN[told.kind], told.shape)
        return made, prod(told.shape) * made.dtype.itemsize
    block, stored, unpack = _unpacking(path, name, told)
    width = told.shape[-1]
    if width % block:
        raise UserError(f"{path} is refused: its tensor {name!r} has rows of {width}, no multiple of {block}")
    row = prod(told.shape[1:]) // block * stored if len(told.shape) > 1 else stored * width // block
    plain = contiguous(path, told.offset, torch.float32, told.shape)
    if len(told.shape) < 2:
        raise UserError(f"{path} is refused: its tensor {name!r} has one row, and is quantised")
    packed = LazyTensor(path, told.offset, torch.float32, told.shape, plain.strides, Packed(row, unpack))
    return packed, row * told.shape[0]


def _unpacking(path: Path, name: str, told: Described) -> tuple[int, int, Any]:
    """Of a quantised type: numbers in a block, its bytes, and what makes numbers of rows."""
    require(f"{path} with its quantised tensors", "gguf", "gguf")
    import gguf
    import numpy as np

    try:
        kind = gguf.GGMLQuantizationType(told.kind)
        block, stored = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise UserError(f"{path} has {name!r} in a format of number {told.kind}, which is not known") from None
    if kind.name.startswith("I") and kind.name[1:].isdigit():
        raise UserError(f"{path} has {name!r} in whole numbers, which is no format of weights")

    def unpack(data: bytes, rows: int) -> Tensor:
        try:
            found = gguf.dequantize(np.frombuffer(data, np.uint8).reshape(rows, -1), kind)
        except NotImplementedError:
            raise UserError(f"{path} has {name!r} in {kind.name}, which the package 'gguf' cannot read") from None
        return torch.from_numpy(np.array(found, np.float32))

    return block, stored, unpack
