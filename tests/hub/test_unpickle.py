"""Pickles are read and never run: what an attacker would put into one is refused in one line, and does nothing."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.errors import UserError
from redraft.hub.convert.allow_list import Ref, Refused, Stub
from redraft.hub.convert.archive import read_archive
from redraft.hub.convert.sources import open_source
from redraft.hub.convert.unpickle import RestrictedUnpickler
from redraft.hub.lazy_tensor import LazyTensor
from tests.hub.foreign import strangers

PROTO = b"\x80\x02"


def archive(path: Path, data: bytes, entries: dict[str, bytes] | None = None, root: str = "archive") -> Path:
    """A torch file with that pickle."""
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(f"{root}/data.pkl", data)
        for name, content in {"byteorder": b"little", "version": b"3\n", **(entries or {})}.items():
            out.writestr(f"{root}/{name}", content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        open_source(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any):
        self.pair = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.pair


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def called(module: str, name: str, *args: bytes, by: bytes = b"R") -> bytes:
    """{"state_dict": module.name(*args)}"""
    made = b"c" + module.encode() + b"\n" + name.encode() + b"\n" + b"(" + b"".join(args) + b"t" + by
    return PROTO + b"}" + text("state_dict") + made + b"s."


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that any of the tricks would make if it ran."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


TRICKS: dict[str, Callable[[str], bytes]] = {
    "reduce": lambda touch: pickle.dumps({"state_dict": Call(os.system, touch)}),
    "reduce of eval": lambda touch: pickle.dumps({"x": Call(eval, f"__import__('os').system({touch!r})")}),
    "getattr chain": lambda touch: pickle.dumps(Call(getattr, Call(__import__, "os"), "system")),
    "global by alias": lambda touch: called("torch.serialization", "os.system", text(touch)),
    "global by a module's import": lambda touch: called("torch.hub", "os", text(touch)),
    "stack global": lambda touch: b"\x80\x04" + b"\x8c\x05posix\x8c\x06system\x93" + b"\x8c\x01x\x85R.",
    "newobj of a function": lambda touch: called("subprocess", "Popen", text(touch), by=b"\x81"),
    "inst": lambda touch: PROTO + b"(" + text(touch) + b"ios\nsystem\n.",
    "obj": lambda touch: PROTO + b"(cos\nsystem\n" + text(touch) + b"o.",
    "build on a function": lambda touch: PROTO + b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__code__") + b"Nsb.",
    "build on a class": lambda touch: PROTO + b"ccollections\nOrderedDict\n" + b"N}" + text("x") + b"Ks\x86b.",
    "call through the memo": lambda touch: PROTO + b"cos\nsystem\nq\x00" + text(touch) + b"\x85q\x010h\x00h\x01R.",
    "call of an object": lambda touch: PROTO + b"cfoo\nBar\n)R" + text(touch) + b"\x85R.",
    "memo never written": lambda touch: PROTO + b"h\x07.",
    "nested pickle": lambda touch: called("torch.storage", "_load_from_bytes", text("...")),
    "pickle in a pickle": lambda touch: called("pickle", "loads", text("...")),
    "torch.load": lambda touch: called("torch", "load", text("elsewhere.pt")),
    "torch.hub.load": lambda touch: called("torch.hub", "load", text("a/b")),
    "numpy's": lambda touch: called("numpy.testing._private.utils", "runstring", text(touch)),
    "functools.partial": lambda touch: called("functools", "partial", text(touch)),
    "extension codes": lambda touch: PROTO + b"\x82\x01.",
    "persistent id of a path": lambda touch: PROTO + text("/etc/passwd") + b"Q.",
    "persistent id as text": lambda touch: b"P/etc/passwd\n.",
    "copyreg of a function": lambda touch: called("copyreg", "_reconstructor", b"cos\nsystem\n", b"cbuiltins\nobject\n", b"N"),
    "setattr by build of an attribute": lambda touch: PROTO + b"]N}" + text("append") + b"Ks\x86b.",
    "mark underflow": lambda touch: PROTO + b"t.",
    "two pickles": lambda touch: PROTO + b"}." + pickle.dumps(Call(os.system, touch)),
    "no end": lambda touch: PROTO + b"}",
    "out of band buffer": lambda touch: b"\x80\x05\x97.",
    "a number without end": lambda touch: PROTO + b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20) + b".",
    "an endless hash": lambda touch: PROTO + b"K\x01\x85" + b"q\x00h\x00\x86" * 80 + b"\x91.",
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_no_trick_runs_and_each_is_refused(trick: str, canary: Path, tmp_path: Path) -> None:
    message = refusal(archive(tmp_path / "evil.ckpt", TRICKS[trick](f"touch {canary}")))
    assert "is refused: it" in message


def test_tuples_in_tuples_as_a_key_are_refused_before_they_are_hashed(tmp_path: Path) -> None:
    """80 doublings: the hash of the last would visit 2^80 leaves."""
    doubled = b"K\x01\x85" + b"2\x86" * 80
    assert "as a key" in refusal(archive(tmp_path / "x.ckpt", PROTO + b"}" + doubled + b"Ns."))


def test_refused_names_say_which(tmp_path: Path) -> None:
    assert "'os.system'" in refusal(archive(tmp_path / "x.ckpt", called("os", "system", text("true"))))
    assert "'torch.hub.load'" in refusal(archive(tmp_path / "x.ckpt", called("torch.hub", "load", text("a/b"))))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"../../outside": b"x"}, "which no checkpoint holds"),
        ({"/etc/x": b"x"}, "which no checkpoint holds"),
        ({"inner.zip": b"PK\x05\x06" + bytes(18)}, "which no checkpoint holds"),
        ({"data/../../x": b"x"}, "which no checkpoint holds"),
        ({"code/__torch__.py": b"x"}, "TorchScript"),
        ({"constants.pkl": b"x"}, "TorchScript"),
        ({"byteorder": b"big"}, "little-endian"),
    ],
)
def test_archives_hold_what_torch_writes_and_nothing_else(
    entries: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    assert message in refusal(archive(tmp_path / "x.ckpt", PROTO + b"}.", entries))


def test_bombs_and_liars_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("archive/data.pkl", PROTO + bytes(1 << 20) + b".")
    assert "compressed" in refusal(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as out:
        out.writestr("archive/data.pkl", PROTO + b"}.")
        out.writestr("archive/data.pkl", PROTO + b"].")
    assert "twice" in refusal(path)
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("one/data.pkl", PROTO + b"}.")
        out.writestr("two/version", b"3")
    assert "several archives" in refusal(path)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as out:
        out.writestr("archive/data.pkl", PROTO + b"}.")
    assert "is refused" in refusal(archive(path, inner.getvalue()))  # a zip in the place of the pickle


def test_an_entry_that_says_another_name_in_its_own_header_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.ckpt", PROTO + b"}.", {"data/0": b"abcd"})
    data = path.read_bytes()
    first = data.index(b"archive/data/0")
    path.write_bytes(data[:first] + b"archive/data/1" + data[first + 14 :])
    assert "another header" in refusal(path)


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.ckpt", PROTO + b"}.", {"data/0": b"a" * 64})
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\x01\x02", 0, data.rindex(b"archive/data/0"))
    for field in (20, 24):  # both sizes of data/0 in the directory reach into what follows
        data[directory + field : directory + field + 4] = struct.pack("<I", len(data))
    path.write_bytes(data)
    assert "overlaps another, or its end" in refusal(path)


def test_formats_before_the_zip_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert "torch's format before 1.6" in refusal(path)
    path.write_bytes(b"not a checkpoint at all")
    assert "no torch file" in refusal(path)


def storage(shape: bytes, stride: bytes, offset: bytes = b"K\x00", count: bytes = b"K\x04", key: str = "0") -> bytes:
    """{"w": _rebuild_tensor_v2(storage, offset, shape, stride, False, {})}, the storage of four floats."""
    handle = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + count + b"tQ"
    return (
        PROTO
        + b"}"
        + text("w")
        + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + handle
        + offset
        + shape
        + stride
        + b"\x89}tRs."
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (storage(b"K\x05\x85", b"K\x01\x85"), "beyond its storage"),
        (storage(b"K\x02\x85", b"K\x01\x85", offset=b"K\x03"), "beyond its storage"),
        (storage(b"K\x02K\x02\x86", b"K\x04K\x01\x86"), "beyond its storage"),
        (storage(b"K\x02\x85", b"K\x01\x85", count=b"K\x05"), "shorter than the tensors"),
        (storage(b"K\x02\x85", b"K\x01\x85", key="1"), "which it does not hold"),
        (storage(b"K\x02\x85", b"K\x01\x85", key="../0"), "which it does not hold"),
        (storage(b"K\x02\x85", b"K\x01K\x01\x86"), "no storage"),
        (storage(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), "no shape"),
    ],
)
def test_tensors_lie_within_their_storages(data: bytes, message: str, tmp_path: Path) -> None:
    assert message in refusal(archive(tmp_path / "x.ckpt", data, {"data/0": bytes(16)}))


def test_tensors_come_out_as_torch_reads_them(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    tensors: dict[str, Any] = OrderedDict(
        whole=base, turned=base.T, part=base[2:5, 1:], row=base[3], number=torch.tensor(3.5),
        half=base.half(), brain=base.bfloat16(), ids=torch.arange(5), none=torch.empty(0, 3),
        parameter=torch.nn.Parameter(base[:2].clone()), tied=base,
    )  # fmt: skip
    torch.save({"state_dict": tensors}, tmp_path / "x.ckpt")
    read = read_archive(tmp_path / "x.ckpt")["state_dict"]
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert isinstance(read[name], LazyTensor)
        assert torch.equal(read[name].whole(), tensor) and read[name].dtype == tensor.dtype, name
    assert torch.equal(read["turned"].rows(1, 3), base.T[1:3])


def test_unknown_classes_become_stubs_whose_values_can_be_read(tmp_path: Path) -> None:
    with strangers() as classes:
        tokenizer = classes["TinyLLamaTokenizer"]()
        tokenizer.words = {"a": [1, 2]}  # type: ignore[attr-defined]
        torch.save({"tokenizer": tokenizer, "path": Path("/somewhere"), "kind": torch.float32}, tmp_path / "x.ckpt")
    value = read_archive(tmp_path / "x.ckpt")
    assert isinstance(value["tokenizer"], Stub) and value["tokenizer"].ref == Ref("dataloader", "TinyLLamaTokenizer")
    assert value["tokenizer"].state == {"words": {"a": [1, 2]}}
    assert isinstance(value["path"], Stub) and value["kind"] == Ref("torch", "float32")


def test_state_of_a_real_class_is_not_set(tmp_path: Path) -> None:
    """`Path` is importable; what comes out is a stub all the same, and nobody's __setstate__ was called."""
    torch.save({"x": torch.nn.Linear(2, 2)}, tmp_path / "x.ckpt")
    value = read_archive(tmp_path / "x.ckpt")["x"]
    assert isinstance(value, Stub) and "_parameters" in value.state


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_read_at_every_protocol(protocol: int) -> None:
    value = {"a": [1, -2.5, None, True], "b": (1, (2, 3)), "c": "ü", "d": 1 << 70, "e": {"f": []}, "h": b"bytes"}
    if protocol > 2:
        assert RestrictedUnpickler(pickle.dumps(value, protocol)).value == value
    else:  # bytes are a call to _codecs.encode there
        read = RestrictedUnpickler(pickle.dumps(value, protocol)).value
        assert {k: v for k, v in read.items() if k != "h"} == {k: v for k, v in value.items() if k != "h"}
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    again = RestrictedUnpickler(pickle.dumps(cyclic, protocol)).value
    assert again[0] is again


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_random_damage_is_refused_or_read_but_never_a_traceback() -> None:
    whole = pickle.dumps({"a": [1, 2.0, "x"], "b": {"c": (None, True)}, "d": OrderedDict(x=1)}, 2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3000):
        data = bytearray(whole)
        for place in torch.randint(0, len(whole), (2,), generator=generator).tolist():
            data[place] = int(torch.randint(0, 256, (), generator=generator))
        with contextlib.suppress(Refused):
            RestrictedUnpickler(bytes(data))
