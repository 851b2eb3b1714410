"""Sources of text: documents in a fixed order, each assigned to training or validation.

stdlib                          the source of the running Python's standard library
a.txt,b/**/*.jsonl.zst,folder   files, globs and folders (`formats`), in a list parted by commas
hf:NAME[:CONFIG[:SPLIT]]        a data set of the Hugging Face hub, streamed; SPLIT is `train` unless given
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import re
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from redraft.errors import UserError, require
from redraft.files import clean, whereabouts
from redraft.text.sources.formats import ACCEPTED, check_readable, is_usable, read_documents, text_field

TRAIN, VALIDATION = "train", "validation"
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
# what the build wrote: it differs between machines, and holds their paths
_BUILT = re.compile(r"config-|_sysconfigdata|_sysconfig_vars")


class Document(NamedTuple):
    """`key` is what decides its split; `read` is how many bytes of the source have been read when it comes."""

    text: str
    key: str
    read: int


class Assigned(NamedTuple):
    """A document and the split that it is in."""

    split: str
    text: str
    read: int


class Source(ABC):
    """Documents in a fixed order. `total` is the size of the source in bytes, None where it is not known."""

    total: int | None

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """The documents; reading them twice gives the same ones."""

    @abstractmethod
    def identity(self) -> str:
        """What changes when the documents may have."""


@final
class StandardLibrary(Source):
    """The `.py` files of the running CPython's standard library, without tests, in the order of their paths."""

    def __init__(self) -> None:
        self.root = Path(sysconfig.get_path("stdlib"))
        self.paths = sorted(_library(self.root), key=Path.as_posix)
        if not self.paths:
            raise UserError(f"this Python has no source of its standard library in {self.root}: name another source.")
        self.total = sum((self.root / path).stat().st_size for path in self.paths)

    def documents(self) -> Iterator[Document]:
        read = 0
        for path in self.paths:
            data = (self.root / path).read_bytes()
            read += len(data)
            try:
                text = data.decode()
            except UnicodeDecodeError:
                continue  # a few modules are in another encoding, to show that Python can read it
            if text and not text.isspace():
                yield Document(text, path.as_posix(), read)

    def identity(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            data = (self.root / path).read_bytes()
            digest.update(f"{path.as_posix()} {len(data)}\n".encode() + data)
        return f"stdlib {platform.python_version()} {digest.hexdigest()}"


@final
class Files(Source):
    """Local files, in the order given."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.sizes = [path.stat().st_size for path in paths]
        self.total = sum(self.sizes)

    def documents(self) -> Iterator[Document]:
        number = before = 0
        for path, size in zip(self.paths, self.sizes, strict=True):
            for text, read in read_documents(path):
                yield Document(text, str(number), before + read)
                number += 1
            before += size

    def identity(self) -> str:
        stats = ((path, path.stat()) for path in self.paths)
        return "\n".join(f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)


@final
class HubDataset(Source):
    """A data set that the `datasets` library streams: `NAME[:CONFIG[:SPLIT]]`; an empty CONFIG is the default one."""

    total = None

    def __init__(self, spec: str) -> None:
        self.spec = spec
        parts = spec.split(":")
        if len(parts) > 3 or not parts[0]:
            raise UserError(f"cannot read 'hf:{spec}': write hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT.")
        self.name, self.config, self.split = (*parts, *("", "")[len(parts) - 1 :])

    def documents(self) -> Iterator[Document]:
        read, field = 0, ""
        for number, row in enumerate(self.rows()):
            field = field or text_field(list(row), f"hf:{self.spec}")
            text = row.get(field)
            if text is not None and not isinstance(text, str):
                where = f"row {number + 1} of hf:{self.spec}"
                raise UserError(f"{where} holds a {type(text).__name__} in its field {field!r}: it must hold text.")
            text = clean(text) if text else text
            if text and not text.isspace():
                read += len(text.encode())
                yield Document(text, str(number), read)

    def identity(self) -> str:
        return f"hf:{self.spec}"

    def rows(self) -> Any:
        """The rows as they are, streamed."""
        require(f"hf:{self.spec}", "hf", "datasets")
        from datasets import load_dataset

        try:
            return load_dataset(self.name, self.config or None, split=self.split or "train", streaming=True)
        except Exception as error:  # the library raises its own errors, the network's and bare `ValueError`
            raise UserError(f"cannot open hf:{self.spec}: {' '.join(str(error).split())}") from error


def open_source(spec: str) -> Source:
    """The source that a string names. Raises `UserError` for a path that is not there or holds nothing to read."""
    if spec == "stdlib":
        return StandardLibrary()
    if spec.startswith("hf:"):
        return HubDataset(spec.removeprefix("hf:"))
    return Files(find_files(spec, is_usable, ACCEPTED))


def find_files(spec: str, wanted: Callable[[Path], bool], accepted: str) -> list[Path]:
    """The files that a list of files, globs and folders names, each entry's in the order of their paths.

    A file named by itself must be `wanted(path)`; globs and folders give those of theirs that are.
    """
    return once(path for entry in _entries(spec) for path in _entry(entry, wanted, accepted))


def check_named(spec: str | None) -> None:
    """`UserError` where a source names a file or folder that is not here. Nothing is opened."""
    if spec is None or spec == "stdlib" or spec.startswith("hf:"):
        return
    for path in _entries(spec):
        if not (path.exists() or glob.has_magic(str(path))):
            raise _not_here(path)
        check_readable(path)


def _entries(spec: str) -> list[Path]:
    """What a list of files, globs and folders is a list of."""
    entries = [spec] if os.path.exists(spec) else [entry.strip() for entry in spec.split(",") if entry.strip()]
    if not entries:
        raise UserError("the source of the text is empty: name 'stdlib', files, a folder or hf:NAME.")
    return [Path(entry).expanduser() for entry in entries]


def _not_here(path: Path) -> UserError:
    why = whereabouts(path)
    return UserError(f"there is no file or folder {path}{why}: name 'stdlib', files, globs, folders or hf:NAME.")


def once(paths: Iterable[Path]) -> list[Path]:
    """Each file under the first of its names: links, and folders that links lead to again, name no other file."""
    return list({inode(path): path for path in reversed(list(paths))}.values())[::-1]


def inode(path: Path) -> tuple[int, int]:
    """What a file is, however it is spelled."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def refuse_same_files(ours: Iterable[Path], theirs: Iterable[Path]) -> None:
    """`UserError` where a file is in both, under whatever names."""
    ours_by = {inode(path): path for path in ours}
    for path in theirs:
        if (other := ours_by.get(inode(path))) is not None:
            names = str(path) if path == other else f"{other} is {path}, which"
            raise UserError(f"{names} is in both the source and the validation source: name it in one of them.")


@dataclass
class Shared:
    """How many documents of a validation source there are, and how many of them the training source holds too."""

    documents: int = 0
    common: int = 0

    def refuse(self, validation: str = "the validation source") -> None:
        """`UserError` where most are: it is then the same text under another name."""
        if 2 * self.common > self.documents:
            raise UserError(
                f"{self.common} of the {self.documents} documents of {validation} are in the training source too: what is "
                f"validated on must not be trained on, so name another source"
            )


def assigned(
    source: Source, validation: Source | None, fraction: float, shared: Shared | None = None
) -> Iterator[Assigned]:
    """Every document with its split, in a fixed order.

    Without a source for validation, a document goes there when the hash of its key is below `fraction`; the first
    never does and the second always, so that both splits get one. A single document is cut at a line end instead.
    `shared` counts what documents of validation are in the source, by content; most of them is a `UserError`.
    """
    if validation is None:
        yield from _divided(source.documents(), fraction)
        return
    refuse_shared(source, validation)
    shared = Shared() if shared is None else shared
    held_out = {content(document.text) for document in validation.documents()}
    shared.documents = len(held_out)
    for document in source.documents():
        held_out.discard(content(document.text))
        yield Assigned(TRAIN, document.text, document.read)
    shared.common = shared.documents - len(held_out)
    shared.refuse()
    before = source.total or 0
    yield from (Assigned(VALIDATION, document.text, before + document.read) for document in validation.documents())


def refuse_shared(source: Source, validation: Source | None) -> None:
    """`UserError` where a file is in both."""
    refuse_same_files(files_of(source), files_of(validation))


def content(text: str) -> bytes:
    """What a document is, wherever it lies: a digest of its text, white space at its ends aside."""
    return hashlib.blake2b(text.strip().encode(), digest_size=16).digest()


def in_validation(number: int, key: str, fraction: float) -> bool:
    """Whether a document is held out: the first never is, the second always, the others by the hash of their keys."""
    return number == 1 or (number > 1 and _unit(key) < fraction)


def _divided(documents: Iterator[Document], fraction: float) -> Iterator[Assigned]:
    first, second = next(documents, None), next(documents, None)
    if first is None:
        return
    if second is None:
        cut = _line_end(first.text, fraction)
        yield Assigned(TRAIN, first.text[:cut], first.read)
        yield Assigned(VALIDATION, first.text[cut:], first.read)
        return
    yield Assigned(TRAIN, first.text, first.read)
    yield Assigned(VALIDATION, second.text, second.read)
    for number, (text, key, read) in enumerate(documents, start=2):
        yield Assigned(VALIDATION if in_validation(number, key, fraction) else TRAIN, text, read)


def _line_end(text: str, fraction: float) -> int:
    """Where to cut a text so that about `fraction` of it comes after: at the nearest line end, if there is one."""
    aim = round(len(text) * (1 - fraction))
    ends = (text.rfind("\n", 0, aim) + 1, text.find("\n", aim) + 1)
    inside = [end for end in ends if text[:end].strip() and text[end:].strip()]
    cut = min(inside, key=lambda end: abs(end - aim), default=aim)
    if not (text[:cut].strip() and text[cut:].strip()):
        raise UserError(f"the only document has {len(text)} characters, too few to split: give more text.")
    return cut


def _unit(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def local_files(spec: str) -> list[Path]:
    """The files of text that a string names; none where it names no such files."""
    try:
        return files_of(open_source(spec))
    except UserError:
        return []


def files_of(source: Source | None) -> list[Path]:
    """The local files of a source; none of the standard library and of the hub."""
    return source.paths if isinstance(source, Files) else []


def _library(root: Path) -> Iterator[Path]:
    """The library's files, relative to `root`. What is left out is not walked through: it holds most files."""
    ours = lambda name: name not in _LEFT_OUT and not _BUILT.match(name)
    for place, folders, names in os.walk(root):
        folders[:] = filter(ours, folders)
        yield from (Path(place, name).relative_to(root) for name in names if name.endswith(".py") and ours(name))


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder."""
    return (Path(place, name) for place, names in _walked(folder) for name in names)


def _walked(top: Path, hidden: bool = True) -> Iterator[tuple[str, list[str]]]:
    """A folder and all below it, through links, with the names of their files. Each folder once: a link that leads above is no
    second one."""
    seen = set[tuple[int, int]]()
    for place, folders, names in os.walk(top, followlinks=True):
        here = inode(Path(place))
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if hidden or not name.startswith("."))
        yield place, names


def _matches(pattern: str, within: str = "") -> Iterator[Path]:
    """The files and folders of a glob, whose `**` is a walk: `glob` itself goes round a loop of links until the system refuses
    the path, and through two of them by every way."""
    head, *tail = re.split(r"(?:^|(?<=/))\*\*(?:/|$)", pattern, maxsplit=1)
    found = glob.iglob(head, root_dir=within or None) if head else iter([""])
    if not tail:
        yield from (Path(within, name) for name in found)
        return
    for name in found:
        for place, _ in _walked(Path(within, name), hidden=False):
            yield from _matches(tail[0] or "*", place)


def _is_there(path: Path) -> bool:
    """Whether it is a file. `UserError` for a link that leads nowhere: its text would be left out in silence. (An editor's
    lock is such a link, and hidden.)"""
    named = (is_usable(path) or path.suffix == ".bin") and not path.name.startswith(".")
    if named and path.is_symlink() and not path.exists():
        raise UserError(f"{path} cannot be read{whereabouts(path)}: mend the link, or remove it.")
    return path.is_file()


def _entry(path: Path, wanted: Callable[[Path], bool], accepted: str) -> list[Path]:
    found: Iterable[Path]
    if path.is_file():
        if not wanted(path):
            raise UserError(f"cannot read {path}: its name must end in one of {accepted}.")
        return [path]
    if path.is_dir():
        found, kind = _below(path), "folder"
    elif glob.has_magic(str(path)):
        found, kind = _matches(path.as_posix()), "glob"
    else:
        raise _not_here(path)
    files = sorted((file for file in found if _is_there(file) and wanted(file)), key=Path.as_posix)
    if not files:
        raise UserError(f"the {kind} {path} gives no file to read: names must end in one of {accepted}.")
    return files
