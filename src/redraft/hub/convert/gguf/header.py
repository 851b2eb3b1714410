"""The header of a GGUF file (version 2 and 3), read strictly: no size in it is believed before the file is seen to hold it.

    "GGUF", version u32, tensors u64, pairs u64, pairs of key and value, descriptions of tensors, padding, data

A string is its length u64 and UTF-8. A tensor has a name, its sizes from the innermost on, a type, and an offset in the data.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.errors import UserError

NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
MOST = 1 << 20  # tensors, pairs, and bytes of a name
ALIGNMENT = 32


@dataclass(frozen=True)
class Described:
    """`shape` from the outermost size on; `offset` from the beginning of the file."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Header:
    table: dict[str, Any]
    tensors: dict[str, Described]


class _Damaged(Exception):
    pass


class _Reader:
    """Values one after another; `_Damaged` where the file ends before one does."""

    def __init__(self, path: Path):
        self.file, self.size, self.at = path.open("rb"), path.stat().st_size, 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise _Damaged("it ends within its header")
        self.at += count
        return self.file.read(count)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def count(self, what: str, most: int = MOST) -> int:
        found = int(self.number("<Q"))
        if found > most:
            raise _Damaged(f"it says that it has {found} {what}")
        return found

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise _Damaged(f"it has a value of kind {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in NUMBERS:
            form = NUMBERS[inner]
            data = self.take(count * struct.calcsize(form))
            return [value for (value,) in struct.iter_unpack(form, data)]
        if inner != STRING or count * 8 > self.size - self.at:
            raise _Damaged(f"it has an array of {count} values of kind {inner}")
        return [self.text() for _ in range(count)]


def read_header(path: Path) -> Header:
    """`UserError` where it is no GGUF file, or none that means what it says."""
    reader = _Reader(path)
    try:
        return _read(reader)
    except (_Damaged, struct.error) as error:
        raise UserError(f"{path} is no whole GGUF file: {error}") from None
    finally:
        reader.file.close()


def _read(reader: _Reader) -> Header:
    if reader.take(4) != b"GGUF":
        raise _Damaged("it does not begin with GGUF")
    version = reader.number("<I")
    if version not in (2, 3):
        raise _Damaged(f"its version is {version}, and 2 and 3 are known")
    tensors, pairs = reader.count("tensors"), reader.count("keys")
    table: dict[str, Any] = {}
    for _ in range(pairs):
        key = reader.text()
        if key in table:
            raise _Damaged(f"it has {key[:60]!r} twice")
        table[key] = reader.value(reader.number("<I"))
    found = [_described(reader) for _ in range(tensors)]
    base = _aligned(reader.at, table.get("general.alignment", ALIGNMENT))
    named = {name: Described(shape, kind, base + offset) for name, shape, kind, offset in found}
    if len(named) < len(found):
        raise _Damaged("it describes a tensor twice")
    return Header(table, named)


def _described(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name, sizes = reader.text(), reader.number("<I")
    if not 1 <= sizes <= 4:
        raise _Damaged(f"its tensor {name[:60]!r} has {sizes} dimensions")
    shape = tuple(reader.count(f"rows or columns in {name[:60]!r}", 1 << 40) for _ in range(sizes))[::-1]
    if 0 in shape:
        raise _Damaged(f"its tensor {name[:60]!r} is empty")
    return name, shape, reader.number("<I"), reader.number("<Q")


def _aligned(at: int, alignment: Any) -> int:
    if type(alignment) is not int or not 0 < alignment <= MOST or alignment & (alignment - 1):
        raise _Damaged(f"it aligns its tensors to {alignment}")
    return -(-at // alignment) * alignment
