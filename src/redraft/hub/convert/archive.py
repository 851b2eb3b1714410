"""Torch's zip format: one pickle, and each storage as an uncompressed entry that is read lazily.

What torch does not write there (compression, foreign entries, entries that overlap or lie about where they are) is refused,
so that a file means the same to every reader.
"""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from redraft.errors import UserError
from redraft.hub.convert.allow_list import Refused
from redraft.hub.convert.unpickle import RestrictedUnpickler
from redraft.hub.lazy_tensor import LazyTensor, contiguous

PICKLE_BYTES = 1 << 28
EXPECTED = re.compile(
    r"data\.pkl|data/\w+|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id"
)
_LOCAL = struct.Struct("<4s5H3I2H")  # the header before each entry


def read_archive(path: Path) -> Any:
    """What a torch file holds: plain values, `LazyTensor` tensors, `Stub`s of everything else. No code of it runs."""
    try:
        return _read(path)
    except Refused as error:
        raise UserError(f"{path} is refused: {error}") from None


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK":
        if start[:1] == b"\x80":
            raise Refused(
                "it is a bare pickle, torch's format before 1.6; where it is trusted, load and torch.save it anew"
            )
        raise Refused("it is no torch file (a zip archive)")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive)
            places = {name: _place(path, info) for name, info in entries.items()}
            _check_apart(path, places)
            return _unpickled(path, archive, entries, places)
    except zipfile.BadZipFile as error:
        raise Refused(f"it is not a whole zip archive ({error}): it was not copied whole, or is damaged") from None


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Entries by their name within the one folder of the archive."""
    out: dict[str, zipfile.ZipInfo] = {}
    roots = set()
    for info in archive.infolist():
        root, _, name = info.orig_filename.partition("/")
        roots.add(root)
        if not EXPECTED.fullmatch(name) or root in ("", ".", "..") or "\\" in root or "\0" in info.orig_filename:
            script = " (it is a TorchScript program)" if name.startswith("code/") or name == "constants.pkl" else ""
            raise Refused(f"it holds {info.orig_filename[:80]!r}, which no checkpoint holds{script}")
        if name in out:
            raise Refused(f"it holds {name!r} twice")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise Refused(f"its entry {name!r} is compressed or encrypted, as torch writes none")
        out[name] = info
    if len(roots) > 1:
        raise Refused("it is several archives in one")
    if "data.pkl" not in out:
        raise Refused("it is a zip archive without a data.pkl: no torch file")
    return out


def _place(path: Path, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the bytes of an entry begin and end, by its own header, which must say what the directory says."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        head = file.read(_LOCAL.size)
        if len(head) < _LOCAL.size or head[:4] != b"PK\x03\x04":
            raise Refused(f"its entry {info.orig_filename!r} is not where it says: it was not copied whole")
        fields = _LOCAL.unpack(head)
        name = file.read(fields[9])
        if fields[3] != 0 or name != info.orig_filename.encode():
            raise Refused(f"its entry {info.orig_filename!r} has another header than it says")
    start = info.header_offset + _LOCAL.size + fields[9] + fields[10]
    return start, start + info.file_size


def _check_apart(path: Path, places: dict[str, tuple[int, int]]) -> None:
    end, size = 0, path.stat().st_size
    for name, (start, stop) in sorted(places.items(), key=lambda item: item[1]):
        if start < end or stop > size:
            raise Refused(f"its entry {name!r} overlaps another, or its end")
        end = stop


def _unpickled(
    path: Path, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], places: dict[str, tuple[int, int]]
) -> Any:
    if entries["data.pkl"].file_size > PICKLE_BYTES:
        raise Refused(f"its pickle has {entries['data.pkl'].file_size} bytes: no checkpoint's has so many")
    if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
        raise Refused("its numbers are not little-endian")

    def storage(key: str, dtype: torch.dtype, count: int) -> LazyTensor:
        if (name := f"data/{key}") not in places:
            raise Refused(f"it points to storage {key[:40]!r}, which it does not hold")
        start, stop = places[name]
        if count * dtype.itemsize > stop - start:
            raise Refused(f"its storage {key!r} is shorter than the tensors in it")
        return contiguous(path, start, dtype, (count,))

    return RestrictedUnpickler(archive.read(entries["data.pkl"]), storage).value
