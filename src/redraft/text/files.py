"""Files that appear whole or not at all, and a folder that one process fills at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from redraft.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write. It lies aside as `name.tmp-<pid>` and takes its name when all of it is on disk.

    Raises `UserError` where the disk is full.
    """
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(f"no space is left in {path.parent}: free some, or choose another folder.") from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())


def make_folder(folder: Path) -> None:
    """The folder with its parents, or a `UserError` that names it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}.") from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; another one waits here. A killed process lets go of it by itself.

    What an earlier, killed holder had left aside is removed: nobody else can be writing it.
    """
    try:
        lock = (folder / ".lock").open("wb")
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}.") from error
    with lock:
        try:
            import fcntl
        except ImportError:  # not a POSIX system: two processes then do the same work twice, to the same bytes
            yield
            return
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob("*.tmp-*"):
            left.unlink()
        yield
