"""Names in a pickle: which globals are data, and what stands in for each; all others are refused."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from redraft.errors import UserError

# Of Python itself, the names that stand in checkpoints as types or containers; all others are refused.
TYPES = frozenset(
    "set frozenset list dict tuple int float str bytes bytearray bool complex object NoneType slice range".split()  # noqa: SIM905
)
STANDARD = {
    "builtins": TYPES,
    "__builtin__": TYPES | {"unicode", "long"},
    "collections": frozenset(("OrderedDict", "defaultdict", "Counter", "deque")),
    "typing": frozenset(("Any", "Dict", "List", "Tuple", "Union", "Optional", "Set")),
    "argparse": frozenset(("Namespace",)),
    "types": frozenset(("SimpleNamespace",)),
    "pathlib": frozenset(("Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
    "pathlib._local": frozenset(("Path", "PosixPath", "PurePosixPath", "WindowsPath")),
    "datetime": frozenset(("datetime", "date", "time", "timedelta", "timezone")),
    "copyreg": frozenset(("_reconstructor", "__newobj__")),
    "copy_reg": frozenset(("_reconstructor",)),
    "_codecs": frozenset(("encode",)),
    "re": frozenset(("_compile", "compile")),
}
# Functions of other packages that make plain things; they become stubs as classes do.
MAKERS = frozenset(
    (f"{module}.{name}")
    for modules, names in (
        (("numpy.core.multiarray", "numpy._core.multiarray"), ("scalar", "_reconstruct")),
        (("numpy",), ("dtype", "ndarray")),
        (("_regex", "regex._regex", "regex"), ("compile",)),
        (("torch",), ("device", "dtype", "Size", "memory_format", "layout")),
        (("torch.serialization",), ("_get_layout",)),
    )
    for module in modules
    for name in names
)
REBUILD = {f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "parameter", "parameter_with_state")}
REBUILD.add("torch._tensor._rebuild_from_type_v2")
RUNS = frozenset("system popen eval exec execfile compile open getattr setattr import_module run_module".split())  # noqa: SIM905


class Refused(UserError):
    """The pickle does what data does not do."""


@dataclass(frozen=True)
class Ref:
    """A global, by name. It stands for nothing that could be called."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Stub:
    """An object of a class that is not loaded: what it was made of, its state, and its items if it held any."""

    ref: Ref
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    members: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.ref}>"


def check(ref: Ref) -> Ref:
    """`Refused` for a global that data does not name."""
    parts = (*ref.module.split("."), *ref.name.split("."))
    if ref.module in STANDARD:
        if ref.name in STANDARD[ref.module]:
            return ref
    elif str(ref) in MAKERS | REBUILD:
        return ref
    elif parts[0] not in sys.stdlib_module_names and parts[0] not in ("nt", "posix", "__builtin__"):
        aliased = [part for part in ref.name.split(".") if part in sys.stdlib_module_names or part in RUNS]
        if not aliased and all(part.isidentifier() for part in parts) and "." not in ref.name:
            return ref
    raise Refused(f"it names {short(str(ref))!r}, which no weights need")


def short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."
