"""Files of a checkpoint: safetensors or torch files, single or in a folder, with or without a config.json."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

import torch

from redraft.errors import UserError
from redraft.files import read_json, whereabouts
from redraft.hub.convert.allow_list import Ref, Stub
from redraft.hub.convert.archive import read_archive
from redraft.hub.convert.gguf.source import open_gguf
from redraft.hub.convert.source import Source
from redraft.hub.lazy_tensor import LazyTensor, contiguous

HEADER_BYTES = 100_000_000  # safetensors' own limit
SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
TORCH = (".ckpt", ".pt", ".pth", ".bin")
STATE = ("state_dict", "model_state_dict", "model", "module")  # where training frameworks put the weights


def open_source(path: Path) -> Source:
    """The checkpoint at `path`. `UserError` when it is missing, damaged, or no checkpoint."""
    if not path.exists():
        raise UserError(f"no such checkpoint: {path}{whereabouts(path)}")
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".gguf":
        return open_gguf(path)
    source = _file(path)
    beside = path.with_name("config.json")
    if not source.config and beside.is_file():
        source.config = _config(beside)
    return source


def _folder(path: Path) -> Source:
    if (path / ".metadata").is_file() or any(path.glob("*.distcp")):
        raise UserError(
            f"{path} is a distributed checkpoint (DCP), in shards: make one file of it by "
            f"`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} {path.name}.pt` (it runs the pickle in "
            f".metadata, so only for files that you trust), and convert that"
        )
    config = _config(path / "config.json") if (path / "config.json").is_file() else {}
    if config.get("model_type") == "redraft":
        raise UserError(f"{path} is a redraft model already")
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (path / name).is_file():
            return Source(path, _sharded(path, read_json(path / name), name), config)
    files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
    files = files or sorted(p for p in path.iterdir() if p.suffix in (*TORCH, ".safetensors") and p.is_file())
    if not files:
        raise UserError(f"{path} holds no weights: a checkpoint is a .safetensors, {', '.join(TORCH)} file or a folder")
    if len(files) > 1:
        names = ", ".join(p.name for p in files[:6])
        raise UserError(f"{path} holds several checkpoints ({names}): give one of these files")
    source = _file(files[0])
    source.path, source.config = path, config or source.config
    return source


def _sharded(folder: Path, index: Any, name: str) -> dict[str, LazyTensor]:
    """The tensors of an index, each in the shard that the index says."""
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{folder / name} has no weight_map: it is damaged")
    shards: dict[str, dict[str, LazyTensor]] = {}
    for shard in set(table.values()):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise UserError(f"{folder / name} names a shard outside its folder: {shard!r}")
        if not (folder / shard).is_file():
            raise UserError(f"{folder} lacks its shard {shard}: it was not copied whole")
        shards[shard] = _file(folder / shard).tensors
    for tensor, shard in table.items():
        if tensor not in shards[shard]:
            raise UserError(f"{folder / shard} lacks {tensor}, which {name} says it holds")
    return {tensor: shards[shard][tensor] for tensor, shard in table.items()}


def _file(path: Path) -> Source:
    if path.suffix == ".safetensors":
        return Source(path, read_safetensors(path))
    value = read_archive(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no weights but a {type(value).__name__}")
    found = next((value[key] for key in STATE if isinstance(value.get(key), dict) and _tensors(value[key])), value)
    if not (tensors := _tensors(found)):
        raise UserError(f"{path} holds no weights: its entries are {', '.join(map(str, list(value)[:8])) or 'none'}")
    config = _plain_config(value)
    lightning = "state_dict" in value and found is value["state_dict"]
    return Source(path, tensors, config, _shadow(path, value), lightning, frozenset(map(str, value)))


def _tensors(value: dict[Any, Any]) -> dict[str, LazyTensor]:
    return {key: tensor for key, tensor in value.items() if isinstance(key, str) and isinstance(tensor, LazyTensor)}


def _shadow(path: Path, value: dict[Any, Any]) -> list[LazyTensor] | None:
    ema = plain_state(value.get("ema"))
    if ema is None or ema == {}:
        return None
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(shadow, list) or not all(isinstance(tensor, LazyTensor) for tensor in shadow):
        raise UserError(f"{path} holds an EMA that is no list of tensors: give --raw for the weights themselves")
    return shadow


def plain_state(value: Any) -> Any:
    return value.state if isinstance(value, Stub) and isinstance(value.state, dict) else value


def _plain_config(value: dict[Any, Any]) -> dict[str, Any]:
    """The configuration that a training framework stored, or nothing."""
    for key in ("hyper_parameters", "config", "hparams", "args"):
        table = plain(value.get(key))
        if isinstance(table, dict):
            return table["config"] if isinstance(table.get("config"), dict) else table
    return {}


def plain(value: Any, depth: int = 0) -> Any:
    """Stubs of configuration objects (OmegaConf, Namespace, dataclasses) as the plain values in them; else None."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if depth > 20:
        return None
    if isinstance(value, dict):
        return {str(k): plain(v, depth + 1) for k, v in list(value.items())[:1000] if isinstance(k, (str, int))}
    if isinstance(value, (list, tuple)):
        return [plain(v, depth + 1) for v in value[:100]]
    if isinstance(value, Stub):
        return plain(_inside(value), depth + 1)
    return str(value) if isinstance(value, Ref) else None


def _inside(stub: Stub) -> Any:
    """What an object of a configuration holds: the items of a dictionary's child, OmegaConf's content, or its attributes."""
    if stub.items or not isinstance(stub.state, dict):
        return stub.items or None
    return next((stub.state[key] for key in ("_content", "_val") if key in stub.state), stub.state)


def _config(path: Path) -> dict[str, Any]:
    table = read_json(path)
    if not isinstance(table, dict):
        raise UserError(f"{path} is no table of settings")
    return table


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file, of which only the header is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > min(size - 8, HEADER_BYTES):
            raise UserError(f"{path} is no whole safetensors file: its header does not fit in it")
        try:
            table = json.loads(file.read(length))
            entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
            return {name: _entry(path, 8 + length, size, entry) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is no safetensors file: its header is damaged ({error})") from None


def _entry(path: Path, base: int, size: int, entry: dict[str, Any]) -> LazyTensor:
    shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    if entry["dtype"] not in SAFETENSORS:
        raise ValueError(f"dtype {entry['dtype']}")
    dtype = SAFETENSORS[entry["dtype"]]
    if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
        raise ValueError("sizes that are no sizes")
    if stop - start != prod(shape) * dtype.itemsize:
        raise ValueError("a tensor of another size than its shape")
    if base + stop > size:
        raise UserError(f"{path} ends before its tensors do: it was not copied whole")
    return contiguous(path, base + start, dtype, shape)
