"""LITPKDS: the packed token files of TinyLlama, SMDM and LLaDA-style data sets.

A file is a 24-byte header (b"LITPKDS", version u64 = 1, dtype code u8, tokens u64) and raw little-endian tokens.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redraft.errors import UserError
from redraft.files import whole_file
from redraft.text.shards.tokens import Shard, Tokens

_HEADER = struct.Struct("<7sQBQ")
MAGIC = b"LITPKDS"
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats, no tokens


def packed_shard(path: Path) -> Shard:
    """Where the tokens of a packed file lie. Raises `UserError` if its header or its length is wrong."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(MAGIC):
        raise UserError(f"{path} is not a packed token file: it does not begin with LITPKDS.")
    _, version, code, tokens = _HEADER.unpack(head)
    if version != 1 or code not in _DTYPES:
        raise UserError(f"{path} is packed in a way this version cannot read: version {version}, dtype code {code}.")
    expected = _HEADER.size + tokens * np.dtype(_DTYPES[code]).itemsize
    if length != expected:
        state = "cut short" if length < expected else "too long"
        raise UserError(f"{path} is {state}: its header promises {expected} bytes and it has {length}.")
    return Shard(path, tokens, _DTYPES[code], _HEADER.size)


def packed_tokens(paths: list[Path]) -> Tokens:
    """Packed files in the order given, as one stream; how many bytes or documents of text they were is not known."""
    return Tokens([packed_shard(path) for path in paths], documents=None, bytes=None)


def write_packed(path: Path, tokens: NDArray[Any], dtype: str = "<u2") -> None:
    """Writes tokens [n] as a packed file. Raises `ValueError` where the dtype cannot hold them."""
    code = next(code for code, name in _DTYPES.items() if name == dtype)
    stored = tokens.astype(dtype)
    if not np.array_equal(stored, tokens):
        raise ValueError(f"tokens from {tokens.min()} to {tokens.max()} do not fit {dtype}")
    with whole_file(path) as file:
        file.write(_HEADER.pack(MAGIC, 1, code, len(stored)))
        file.write(stored.tobytes())
