"""Reading and writing files: UTF-8 text and JSON, written aside and renamed, with errors of the disk as sentences."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from redraft.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EPERM, errno.ENOENT)


@contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Turns what a disk can refuse into a `UserError` that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(f"no space is left in {folder}: free some, or choose another folder") from None
        if error.errno in _REFUSED:
            raise UserError(_refused(error, folder)) from None
        raise


def _refused(error: OSError, folder: Path) -> str:
    """What could not be done: what is read elsewhere while `folder` is written is named itself."""
    other = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else folder
    why = os.strerror(error.errno or 0)
    if other.absolute().is_relative_to(folder.absolute()) or folder.absolute().is_relative_to(other.absolute()):
        return f"cannot write in {folder}: {why}"
    return f"cannot read {other}: {why}"


def whereabouts(path: Path) -> str:
    """Why nothing is found at `path`, to follow its name in a message: a link that leads nowhere, a file where a folder
    should be, a folder that may not be looked into, or a name that is nearly right; empty where nothing tells."""
    first = next((part for part in (*reversed(path.parents), path) if not os.path.exists(part)), path)
    if first.is_symlink():
        return f" ({first} is a link to {os.readlink(first)}, which leads nowhere)"
    if first.exists():
        return f" ({path} is a {'folder' if path.is_dir() else 'file'})"
    try:
        names = [item.name for item in first.parent.iterdir()]
    except NotADirectoryError:
        return f" ({first.parent} is a file)"
    except OSError as error:
        return f" (cannot look into {first.parent}: {error.strerror})"
    near = get_close_matches(first.name, names, n=1, cutoff=0.6)
    return f" (did you mean {first.parent / near[0]}?)" if near else ""


def make_folder(folder: Path) -> None:
    """The folder with its parents."""
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A name beside `path`, `name.tmp-<pid>`: what is written there takes the name `path` when all of it is on disk."""
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with disk(path.parent):
        try:
            yield aside
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills a file under another name, which takes this one when all of it is on disk."""
    with _aside(path) as aside:
        write(aside)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file. Its writer hides the disk's own error, so a full disk is told by what is free."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(aside: Path) -> None:
        try:
            save_file(whole, aside, metadata)
        except SafetensorError:
            needed = sum(tensor.nbytes for tensor in whole.values())
            aside.unlink(missing_ok=True)
            if shutil.disk_usage(path.parent).free < needed:
                raise OSError(errno.ENOSPC, "disk full") from None
            raise

    write_whole(path, write)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, whole or not at all."""
    with _aside(path) as aside, aside.open("wb") as file:
        yield file


def check_new(into: Path) -> None:
    """`UserError` where something is in the place of a new folder; an empty folder may be there."""
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        what = "not empty" if into.is_dir() else "a file"
        raise UserError(f"{into} is {what}: give a new or empty folder")


@contextmanager
def whole_folder(into: Path) -> Iterator[Path]:
    """A folder to fill beside `into`, which takes its name when it is done. `UserError` where something is there already."""
    check_new(into)
    make_folder(into.parent)
    aside = into.with_name(f"{into.name}.tmp-{os.getpid()}")
    with disk(into.parent):
        try:
            try:
                aside.mkdir()
            except FileNotFoundError:  # such places as /proc take no folders, and say so oddly
                raise UserError(f"cannot write in {into.parent}: give another folder") from None
            yield aside
            if into.is_dir():
                into.rmdir()
            aside.rename(into)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: a NaN is an error, not a token that others cannot read."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """A table with a heading. `columns`: those that are written, and their order; all, as they first appear, if left out."""
    text = io.StringIO()
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_text(path: Path) -> str:
    """The text of a UTF-8 file without its byte order mark, or a `UserError` that names the file."""
    try:
        return decoded(path.read_bytes(), path)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}{whereabouts(path)}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def decoded(data: bytes, where: object) -> str:
    """UTF-8 bytes as text without a byte order mark; `UserError` names the line of a byte that is none."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        why = f"byte {data[error.start]:#04x} at {error.start}, in line {line}"
        raise UserError(f"{where} is not UTF-8 text ({why}): convert it, or leave it out.") from None


def lines(text: str) -> list[str]:
    """The lines of a text, which "\\n" or "\\r\\n" ends: U+2028, U+0085 and the like, at which `str.splitlines` would cut, may
    stand within a line of JSON or of a question."""
    found = [line.removesuffix("\r") for line in text.split("\n")]
    return found if found[-1] else found[:-1]


def clean(text: str) -> str:
    """JSON, and a command line that is no UTF-8, can hold half of a surrogate pair, which no text can: it becomes `?`."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def read_json(path: Path) -> Any:
    """The value of a JSON file, or a `UserError` that names it."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from None


def sha256(*paths: Path) -> str:
    """Of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; another one waits here. A killed process lets go of it by itself.

    What an earlier, killed holder had left aside is removed: nobody else can be writing it.
    """
    with disk(folder), (folder / ".lock").open("wb") as lock:
        try:
            import fcntl
        except ImportError:  # not a POSIX system: two processes then do the same work twice, to the same bytes
            yield
            return
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob("*.tmp-*"):
            left.unlink()
        yield
