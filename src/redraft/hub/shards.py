"""Weights on disk: one safetensors file, or shards with an index above 5 GB, written tensor by tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from redraft.errors import UserError
from redraft.files import read_json, whole_file, write_json
from redraft.hub.lazy_tensor import Target

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
Rows = Callable[[], Iterator[Tensor]]


def shards_of(sizes: Mapping[str, int], limit: int | None = None) -> list[list[str]]:
    """Names in their order, cut where the bytes of a shard would pass the limit."""
    limit = SHARD_BYTES if limit is None else limit
    out: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if out[-1] and used + size > limit:
            out.append([])
            used = 0
        out[-1].append(name)
        used += size
    return out


def write_weights(folder: Path, tensors: Mapping[str, Tensor | Target], limit: int | None = None) -> None:
    """Every tensor, in the order of its name; the index last, so that one that is there is complete."""
    tensors = dict(sorted(tensors.items()))
    sizes = {name: t.bytes if isinstance(t, Target) else t.nbytes for name, t in tensors.items()}
    shards = shards_of(sizes, limit)
    count = len(shards)
    files = [WEIGHTS] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for file, names in zip(files, shards, strict=True):
        _write_shard(folder / file, {name: tensors[name] for name in names})
    if len(files) > 1:
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where})


def _write_shard(path: Path, tensors: Mapping[str, Tensor | Target]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        size = tensor.bytes if isinstance(tensor, Target) else tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            for rows in tensor.read() if isinstance(tensor, Target) else (tensor.detach().cpu().contiguous(),):
                file.write(rows.flatten().view(torch.uint8).numpy().data)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights. `UserError` where one is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} holds no weights ({WEIGHTS} or {INDEX})")
    table = read_json(folder / INDEX)
    where = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(where, dict) or not all(isinstance(f, str) and Path(f).name == f for f in where.values()):
        raise UserError(f"{folder / INDEX} is damaged: it has no weight_map of files beside it")
    files = [folder / name for name in sorted(set(where.values()))]
    for file in files:
        if not file.is_file():
            raise UserError(f"{folder} lacks its shard {file.name}: it was not copied whole")
    return files


def read_weights(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """Every tensor, shard by shard; what is stored in half precision becomes float32, where it is exact."""
    out: dict[str, Tensor] = {}
    for file in weight_files(folder):
        try:
            tensors = load_file(file, device=str(device))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise UserError(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from None
        if twice := out.keys() & tensors.keys():
            raise UserError(f"{file} holds {min(twice)} once more")
        half = (torch.bfloat16, torch.float16)
        out |= {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in tensors.items()}
    return out
