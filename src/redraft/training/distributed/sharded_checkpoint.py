"""Sharded checkpoints: each rank writes its part in the background, whole or absent; the newest few are kept.

checkpoints/step-00000200/         torch.distributed.checkpoint's files, read back by any number of ranks
checkpoints/step-00000200/done.json    written last: the step, and size and SHA-256 of every file
checkpoints/step-00000300.tmp/     one that is being written, or that a killed run left; nobody reads it

The folder takes its name when every rank has written and hashed its files. All ranks must see the same file system.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from redraft.errors import UserError
from redraft.files import make_folder, read_json, write_json
from redraft.training import checkpoint
from redraft.training.checkpoint import STATE, Background, Cursor, cursor_of, damaged
from redraft.training.distributed.ranks import Ranks, here, is_lost
from redraft.training.journal import FULL

FOLDER, DONE = "checkpoints", "done.json"
_UNREADABLE = (UserError, KeyError, ValueError, RuntimeError, OSError, CheckpointException)


@final
class Saver(Background):
    """Writes one checkpoint at a time while training goes on. `failed`: why the last one could not be written."""

    def __init__(self, folder: Path, keep: int, ranks: Ranks):
        super().__init__()
        self.folder, self.keep, self.ranks = folder / FOLDER, keep, ranks
        self.step = 0
        if ranks.first and self.folder.exists():
            for left in self.folder.glob("*.tmp"):
                shutil.rmtree(left, ignore_errors=True)

    def begin(self, cursor: Cursor, tensors: dict[str, Tensor]) -> None:
        """Copy the state aside, then write it in the background. The one before must be `collect`ed."""
        assert self.running is None
        aside, self.step = self.folder / f"{_name(cursor.step)}.tmp", cursor.step
        error = None
        if self.ranks.first:
            shutil.rmtree(aside, ignore_errors=True)
            try:
                make_folder(aside)
            except UserError as refused:
                error = refused
        self.ranks.agree(error)  # and nobody writes before the folder is there
        # The state is on the CPU when it is written: nothing is to be copied ahead, least of all from another rank's GPU.
        writer = dcp.FileSystemWriter(aside, single_file_per_rank=True, per_thread_copy_ahead=0)
        # Its own stager, which copies tensors that are on the CPU already too: training goes on changing them.
        stager = DefaultStager(StagingOptions(False, False, False, False))
        written = dcp.async_save(tensors, storage_writer=writer, process_group=self.ranks.saving, async_stager=stager)
        assert isinstance(written, Future)
        written.add_done_callback(lambda _: stager.close())
        self.running = self.thread.submit(self._finish, written, aside, cursor)

    def close(self) -> None:
        self.thread.shutdown(wait=self.running is None or self.running.done())

    def _finish(self, written: Future[Any], aside: Path, cursor: Cursor) -> str | None:
        """In the background: hash what this rank wrote, give the folder its name, remove old ones."""
        files, why = {}, None
        try:
            written.result()
            files = _summary(aside, self.ranks.rank)
        except CheckpointException as error:
            why = _reason(error, aside)
        except OSError as error:
            why = os.strerror(error.errno or 0)
        parts = self.ranks.gather((files, why), self.ranks.saving)
        why = next((reason for _, reason in parts if reason), None)
        if self.ranks.first:
            if why is None:
                why = self._named(aside, cursor, {name: entry for files, _ in parts for name, entry in files.items()})
            if why is not None:
                shutil.rmtree(aside, ignore_errors=True)
        return next((reason for reason in self.ranks.gather(why, self.ranks.saving) if reason), None)

    def _named(self, aside: Path, cursor: Cursor, files: dict[str, Any]) -> str | None:
        try:
            write_json(
                aside / DONE, {"step": cursor.step, "shift": cursor.shift, "ranks": self.ranks.size, "files": files}
            )
            final = self.folder / _name(cursor.step)
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
            _sync(self.folder)
        except (OSError, UserError) as error:
            return str(error)
        for old in list(_finished(self.folder.parent))[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)
        return None


def resume(folder: Path, tensors: dict[str, Tensor], fork: Path | None = None) -> tuple[Cursor | None, list[str]]:
    """Fill the state from the newest checkpoint in `folder` that is whole, of either kind, else from the file `fork`.

    The cursor, None if there is no checkpoint; and what was found damaged on the way. `UserError` where all are.
    """
    ranks, found = here(), None
    if here().first:
        found = candidates(folder) or ([fork] if fork and fork.exists() else [])
    errors: list[str] = []
    paths: list[Path] = ranks.tell(found)
    cursor: Any
    for path in paths:
        try:
            if path.is_dir():
                ranks.agree(_caught(path, partial(verify, path, ranks)))
            cursor = _caught(path, partial(_load, path, tensors))
            ranks.agree(cursor if isinstance(cursor, UserError) else None)
        except UserError as error:
            errors.append(str(error))
            continue
        return cursor, errors
    if errors:
        raise UserError(errors[0])
    return None, []


def _caught(path: Path, do: Callable[[], Any]) -> Any:
    """What `do` returns, or a `UserError` where the checkpoint cannot be read; a lost rank is no damage."""
    try:
        return do()
    except _UNREADABLE as error:
        if is_lost(error):
            raise
        return error if isinstance(error, UserError) else damaged(path, error)


def verify(path: Path, ranks: Ranks | None = None) -> None:
    """`UserError` where a file is missing, cut short or altered. Ranks share the hashing; each learns of its own part."""
    rank, size = (ranks.rank, ranks.size) if ranks else (0, 1)
    for number, (name, entry) in enumerate(sorted(read_json(path / DONE)["files"].items())):
        if number % size == rank and _entry(path / name) != entry:
            raise UserError(f"{path / name} is missing or damaged")


def candidates(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first; which of them are whole is not known yet."""
    found = [(int(path.name.partition("-")[2]), path) for path in _finished(folder)]
    if (folder / STATE).exists():
        try:
            found.append((cursor_of(folder / STATE).step, folder / STATE))
        except UserError:  # it cannot say; it may be the newest
            found.append((1 << 62, folder / STATE))
    return [path for _, path in sorted(found, key=lambda pair: pair[0], reverse=True)]


def consolidate(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """The steps done and the weights of a run that still trains, from its newest whole checkpoint, in one piece, by parameter
    name: the moving average where there is one. One process does it, on whatever number of ranks they were written."""
    errors = []
    for path in candidates(folder):
        try:
            step = read_json(path / DONE)["step"] if path.is_dir() else cursor_of(path).step
            return step, _weights(path)
        except _UNREADABLE as error:
            errors.append(str(error))
    raise UserError(f"{folder} holds no whole checkpoint{f' ({errors[0]})' if errors else ''}")


def _weights(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        verify(path)
        described: dict[str, Any] = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        names = _kept(list(described))
        tensors = {name: torch.empty(described[name].size, dtype=described[name].properties.dtype) for name in names}
        _read(path, tensors, None)
    else:
        from safetensors.torch import load_file

        found = load_file(path)
        tensors = {name: found[name] for name in _kept(list(found))}
    return {name.partition(".")[2]: tensor for name, tensor in tensors.items()}


def _kept(names: list[str]) -> list[str]:
    means = [name for name in names if name.startswith("ema.")]
    return means or [name for name in names if name.startswith("model.")]


def _load(path: Path, tensors: dict[str, Tensor]) -> Cursor:
    if not path.is_dir():
        return checkpoint.load(path, tensors)
    _read(path, tensors, here().control)
    done = read_json(path / DONE)
    return Cursor(done["step"], done["shift"])


def _read(path: Path, tensors: dict[str, Tensor], group: Any) -> None:
    """Fill the tensors, each rank of the group its parts; without a group, this process all of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # and so it should be
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(path), process_group=group, no_dist=group is None)


def _finished(folder: Path) -> Iterator[Path]:
    """Newest first."""
    names = sorted((folder / FOLDER).glob("step-*"), reverse=True)
    return (path for path in names if path.suffix != ".tmp" and (path / DONE).exists())


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _summary(folder: Path, rank: int) -> dict[str, Any]:
    """Size and hash of the files that this rank wrote; the first one's include the index of all."""
    own = [*folder.glob(f"__{rank}_*"), *([folder / ".metadata"] if rank == 0 else [])]
    return {path.name: _entry(path) for path in own}


def _entry(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError:
        return None


def _reason(error: CheckpointException, folder: Path) -> str:
    """Why ranks could not write: a full disk by its name."""
    causes = [cause for cause, _ in error.failures.values()]
    if any(isinstance(c, OSError) and c.errno in FULL for c in causes) or _full(folder):
        return f"no space is left in {folder.parent}"
    return str(causes[0] if causes else error).strip().splitlines()[0]


def _full(folder: Path) -> bool:
    return shutil.disk_usage(folder.parent).free < 1 << 20


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
