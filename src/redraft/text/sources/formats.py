"""The documents, or records, in one file: `.txt`, `.jsonl` / `.json` lines or `.parquet`, plain or `.gz`, `.xz`, `.zst`."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from redraft.errors import UserError, require
from redraft.files import clean

TEXT_FIELDS = ("text", "content")
RECORD_FIELDS = (*TEXT_FIELDS, "prompt", "completion", "messages")  # of a table, no other column is looked at
_KINDS = (".txt", ".jsonl", ".json", ".parquet")
_ARROWS_WINDOW = 1 << 27  # the most that its reader of zstd looks back
_COMPRESSIONS = (".gz", ".xz", ".zst")
ACCEPTED = (
    f"{', '.join(_KINDS)}, each also as {', '.join(_COMPRESSIONS)}; or .bin for packed tokens, which begin with LITPKDS"
)

Read = Iterator[tuple[str, int]]


def is_usable(path: Path) -> bool:
    """Whether the name is one of a file that `read_documents` reads."""
    return _kind(path) in _KINDS


def read_documents(path: Path) -> Read:
    """Each document of a file that holds some text, and how many bytes of the file have been read by then.

    Raises `UserError` for a file that is empty, damaged, binary, not UTF-8, or without a field of text.
    """
    with _opened(path) as (stream, raw):
        for text, read in _READERS[_kind(path)](path, stream, raw):
            if text and not text.isspace():
                yield text, read


def read_records(path: Path) -> Iterator[tuple[int, str | Mapping[str, Any]]]:
    """Each record of a file and its number, from 1: a line of a `.txt` file, an object of `.jsonl`, a row of `.parquet`.

    Blank lines are passed over. Raises `UserError` as `read_documents` does, and for a line that is no JSON object.
    """
    with _opened(path) as (stream, raw):
        if _kind(path) == ".parquet":
            file = _parquet(path, stream, raw)
            names = file.schema_arrow.names
            known = [name for name in names if name in RECORD_FIELDS]
            rows = (row for _, batch in _batches(path, file, known or names) for row in batch)
            yield from enumerate(rows, start=1)
            return
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, (_line(path, line) if _kind(path) == ".txt" else _object(path, number, line))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A file's bytes, decompressed and as they are; what is wrong with it is a `UserError`."""
    check_readable(path)
    try:
        with path.open("rb") as raw, closing(_decompressed(path, raw)) as stream:
            if raw.seek(0, io.SEEK_END) == 0:
                raise UserError(f"{path} is empty: remove it, or leave it out.")
            raw.seek(0)
            yield stream, raw
    except (OSError, EOFError, lzma.LZMAError, zlib.error, RecursionError) as error:
        if isinstance(error, OSError) and error.errno and error.strerror:  # the system's own word, not a decoder's
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        raise UserError(f"{path} cannot be read: it is damaged or cut short ({error}).") from error


def text_field(names: Sequence[str], where: str) -> str:
    """The field that holds the text, or a `UserError` that lists the fields there are."""
    for field in TEXT_FIELDS:
        if field in names:
            return field
    fields = ", ".join(sorted(names)) or "none"
    raise UserError(f"{where} has no field 'text' or 'content' (its fields: {fields}): rename the one to read.")


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _COMPRESSIONS else path.suffix


def check_readable(path: Path) -> None:
    """`UserError` where what reads such a file is not installed."""
    if {".zst", ".parquet"} & set(path.suffixes):
        require(str(path), "parquet", "pyarrow")


def _decompressed(path: Path, raw: BinaryIO) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if path.suffix == ".zst":
        import pyarrow

        window = _zstd_window(raw)
        if window > _ARROWS_WINDOW:
            return io.BufferedReader(_LongZstd(path, raw, window))
        # python-zstandard's reader ends quietly where a file was cut short; arrow's says so
        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
    return raw


def _zstd_window(raw: BinaryIO) -> int:
    """Bytes that the first frame of a zstd file looks back (RFC 8878, 3.1.1.1.2); 0 where there is no such frame."""
    head = raw.read(6)
    raw.seek(0)
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd" or head[4] & 0x20:
        return 0
    exponent, mantissa = head[5] >> 3, head[5] & 7
    return (1 << (10 + exponent)) // 8 * (8 + mantissa)


class _LongZstd(io.RawIOBase):
    """What `zstd --long` compressed with a window that arrow refuses, by the zstandard library, to the end of every frame."""

    def __init__(self, path: Path, raw: BinaryIO, window: int) -> None:
        try:
            import zstandard
        except ImportError:
            raise UserError(
                f"{path} looks back a window of {window >> 20} MiB (zstd --long), which needs the package zstandard: "
                f"pip install zstandard, or compress it again without --long"
            ) from None
        self.new = lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        self.raw, self.frame, self.ready, self.error = raw, self.new(), b"", zstandard.ZstdError
        self.begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            while not self.ready and (data := self.frame.unused_data or self.raw.read(1 << 16)):
                self.frame = self.new() if self.frame.eof else self.frame
                self.ready, self.begun = self.frame.decompress(data), True
        except self.error as error:
            raise OSError(str(error)) from None
        if not self.ready and self.begun and not self.frame.eof:
            raise EOFError("the last frame has no end")
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size


def _read_txt(path: Path, stream: BinaryIO, raw: BinaryIO) -> Read:
    data = stream.read()
    if b"\0" in data:
        _not_text(path)
    try:
        yield data.decode("utf-8-sig"), raw.tell()
    except UnicodeDecodeError as error:
        _not_text(path, error)


def _read_lines(path: Path, stream: BinaryIO, raw: BinaryIO) -> Read:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield clean(_value(path, number, line)), raw.tell()


def _line(path: Path, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        _not_text(path, error)


def _object(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    where = f"line {number} of {path}"
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        _not_text(path, error)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}): write one object on each line.") from error
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is a JSON {type(row).__name__}: write one object with its fields on each line.")
    return row


def _value(path: Path, number: int, line: bytes) -> str:
    where, row = f"line {number} of {path}", _object(path, number, line)
    field = text_field(list(row), where)
    if not isinstance(row[field], str):
        raise UserError(f"{where} holds a {type(row[field]).__name__} in its field {field!r}: it must hold text.")
    return str(row[field])


def _read_parquet(path: Path, stream: BinaryIO, raw: BinaryIO) -> Read:
    length = raw.seek(0, io.SEEK_END)
    raw.seek(0)
    file = _parquet(path, stream, raw)
    field = text_field(file.schema_arrow.names, str(path))
    if not _is_text(file.schema_arrow.field(field).type):
        raise UserError(f"the column {field!r} of {path} holds {file.schema_arrow.field(field).type}, not text.")
    total = max(1, file.metadata.num_rows)
    for rows, batch in _batches(path, file, [field]):
        for row in batch:
            if row[field] is not None:
                yield row[field], length * rows // total


def _batches(path: Path, file: Any, columns: list[str]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The rows of some columns, and how many there have been: all of the file, or a `UserError` where one is damaged."""
    import pyarrow

    rows = 0
    try:
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            found, rows = batch.to_pylist(), rows + batch.num_rows
            yield rows, found
    except UnicodeDecodeError as error:
        why = f"byte {error.object[error.start]:#04x} of a text"
        raise UserError(f"{path} is not UTF-8 text ({why}, in rows {rows + 1} to {rows + 1024}): convert it.") from None
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(path, error, f" after row {rows}") from None
    if rows != file.metadata.num_rows:
        raise _damaged(path, ValueError(f"it has {rows} of {file.metadata.num_rows} rows"))


def _is_text(kind: Any) -> bool:
    """Whether an Arrow type holds text: strings, long ones, views, and dictionaries of these."""
    from pyarrow import types

    views = getattr(types, "is_string_view", lambda kind: False)
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or views(kind))


def _parquet(path: Path, stream: BinaryIO, raw: BinaryIO) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(stream if stream is raw else io.BytesIO(stream.read()))
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, EOFError | lzma.LZMAError):
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException, where: str = "") -> UserError:
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{path} is not a parquet file that can be read{where} ({why}): it is damaged, or cut short.")


_READERS: dict[str, Any] = {".txt": _read_txt, ".jsonl": _read_lines, ".json": _read_lines, ".parquet": _read_parquet}


def _not_text(path: Path, error: UnicodeDecodeError | None = None) -> NoReturn:
    why = "it holds NUL bytes" if error is None else f"byte {error.object[error.start]:#04x} at {error.start}"
    raise UserError(f"{path} is not UTF-8 text ({why}): convert it, or leave it out.") from error
