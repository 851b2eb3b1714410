"""A restricted unpickler: a stack machine that builds plain data, lazy tensors and stubs, and calls nothing.

A torch checkpoint is a zip with a pickle in it, and a pickle is a program: to load one is to run it. Here its opcodes are
parsed (`pickletools`) and interpreted over inert values. A global is a name (`Ref`); an object of an unknown class is a
`Stub` that keeps what it was given; a tensor is a place in the file (`LazyTensor`). What only an attack or a damaged file has
is refused in one line.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

import torch

from redraft.hub.convert.allow_list import MAKERS, REBUILD, STANDARD, Ref, Refused, Stub, check, short
from redraft.hub.lazy_tensor import LazyTensor, span

# What torch can rebuild and we do not: how to save it so that it is plain tensors.
WAYS_OUT = {
    "_rebuild_wrapper_subclass": "its tensors are sharded (DTensor, of FSDP2): where it was trained save "
    "{name: t.full_tensor() if hasattr(t, 'full_tensor') else t for name, t in model.state_dict().items()}",
    "_rebuild_tensor_v3": "its tensors are of a type such as float8: save t.to(torch.bfloat16), with their scales applied",
    "ShardedTensor": "its tensors are sharded (FSDP): save the full state dict (FullStateDictConfig) where it was trained",
}
NUMBER_BYTES = 1 << 10  # of one integer; longer ones only cost time
DTYPES = {
    "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "Untyped": torch.uint8,
}  # fmt: skip
Storage = Callable[[str, torch.dtype, int], LazyTensor]
"""(name, dtype, elements) -> where that storage lies."""


class RestrictedUnpickler:
    """Interprets one pickle. `value` is what it holds; `storage` says where its tensors lie."""

    def __init__(self, data: bytes, storage: Storage | None = None):
        self.storage = storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        try:
            self.value = self._run(data)
        except Refused:
            raise
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError, AttributeError) as error:
            raise Refused(f"it is damaged ({type(error).__name__})") from None

    def _run(self, data: bytes) -> Any:
        for opcode, argument, place in pickletools.genops(data):
            name = opcode.name
            if name == "STOP":
                if len(self.stack) != 1 or self.marks:
                    raise Refused("it ends with things left over")
                if (place or 0) + 1 != len(data):
                    raise Refused("it goes on after its end")
                return self.stack[0]
            if name in CONSTANTS:
                self.stack.append(CONSTANTS[name]())
            elif name in LITERALS:
                self.stack.append(argument)
            elif name in STEPS:
                getattr(self, "_drop" if name == "POP" else f"_{name.lower()}")(argument)
            elif name not in IGNORED:
                raise Refused(f"it uses the opcode {name}, which no weights need")
        raise Refused("it has no end")

    # The stack. A list under construction may hold itself, as in Python; nothing here walks it.

    def _pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise Refused("it takes what is not there")
        return self.stack.pop()

    def _top(self) -> Any:
        if not self.stack or (self.marks and len(self.stack) <= self.marks[-1]):
            raise Refused("it takes what is not there")
        return self.stack[-1]

    def _marked(self) -> list[Any]:
        start = self.marks.pop()
        out = self.stack[start:]
        del self.stack[start:]
        return out

    def _mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _drop(self, _: Any) -> None:
        self._pop()

    def _dup(self, _: Any) -> None:
        self.stack.append(self._top())

    def _pop_mark(self, _: Any) -> None:
        self._marked()

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self._top()

    def _binput(self, index: int) -> None:
        self.memo[int(index)] = self._top()

    _put = _long_binput = _binput

    def _binget(self, index: int) -> None:
        if int(index) not in self.memo:
            raise Refused(f"it reads memory slot {index}, which it never wrote")
        self.stack.append(self.memo[int(index)])

    _get = _long_binget = _binget

    # Numbers: an integer of a million digits costs hours and means nothing.

    def _int(self, value: int) -> None:
        if value.bit_length() > 8 * NUMBER_BYTES:
            raise Refused(f"it holds an integer of {value.bit_length()} bits")
        self.stack.append(value)

    _long = _long1 = _long4 = _int

    # Containers.

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._marked()))

    def _tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def _tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def _tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def _tuple_of(self, count: int) -> None:
        self.stack.append(tuple([self._pop() for _ in range(count)][::-1]))

    def _list(self, _: Any) -> None:
        self.stack.append(self._marked())

    def _dict(self, _: Any) -> None:
        self.stack.append(_pairs(self._marked()))

    def _frozenset(self, _: Any) -> None:
        self.stack.append(frozenset(_keys(self._marked())))

    def _append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._marked())

    def _extend(self, new: list[Any]) -> None:
        into = self._top()
        target = into.members if isinstance(into, Stub) else into
        if not isinstance(target, list):
            raise Refused(f"it appends to {_kind(into)}")
        target.extend(new)

    def _additems(self, _: Any) -> None:
        new, into = self._marked(), self._top()
        if not isinstance(into, set):
            raise Refused(f"it adds to {_kind(into)}")
        into.update(_keys(new))

    def _setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._update(_pairs([key, value]))

    def _setitems(self, _: Any) -> None:
        self._update(_pairs(self._marked()))

    def _update(self, new: dict[Any, Any]) -> None:
        into = self._top()
        target = into.items if isinstance(into, Stub) else into
        if not isinstance(target, dict):
            raise Refused(f"it sets items of {_kind(into)}")
        target.update(new)

    # Globals and objects: named, never found; made, never called.

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(check(Ref(module, name)))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise Refused("it names a global by something other than text")
        self.stack.append(check(Ref(module, name)))

    def _newobj(self, _: Any) -> None:
        args, made = self._pop(), self._pop()
        self._call(made, args)

    _reduce = _newobj

    def _newobj_ex(self, _: Any) -> None:
        named, args, made = self._pop(), self._pop(), self._pop()
        if not isinstance(named, dict):
            raise Refused(f"it makes an object of {_kind(named)}")
        self._call(made, (*args, *named.values()))

    def _call(self, made: Any, args: Any) -> None:
        if not isinstance(made, Ref) or not isinstance(args, tuple):
            raise Refused(f"it calls {_kind(made)}")
        self.stack.append(construct(made, args))

    def _build(self, _: Any) -> None:
        state, into = self._pop(), self._top()
        if isinstance(into, Stub):
            into.state = state
        elif not isinstance(into, (dict, LazyTensor)):  # attributes of a state_dict (its versions), of a tensor (hooks)
            raise Refused(f"it changes the state of {_kind(into)}")

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self._storage(self._pop()))

    def _storage(self, name: Any) -> LazyTensor:
        match name:
            case ("storage", Ref(module=module, name=kind), str(key), str(), int(count)) if (
                self.storage and module in ("torch", "torch.storage", "torch.cuda") and kind.endswith("Storage")
            ):
                dtype = DTYPES.get(kind.removesuffix("Storage"))
                if dtype is not None and count >= 0 and not isinstance(count, bool):
                    return self.storage(key, dtype, count)
        raise Refused("it points to something other than a storage of its own")


STEPS = frozenset(
    """MARK POP DUP POP_MARK MEMOIZE BINPUT PUT LONG_BINPUT BINGET GET LONG_BINGET INT LONG LONG1 LONG4 TUPLE TUPLE1 TUPLE2
    TUPLE3 LIST DICT FROZENSET APPEND APPENDS ADDITEMS SETITEM SETITEMS GLOBAL STACK_GLOBAL NEWOBJ REDUCE NEWOBJ_EX BUILD
    BINPERSID""".split()  # noqa: SIM905
)
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set,
}  # fmt: skip
LITERALS = frozenset(
    """BININT BININT1 BININT2 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8""".split()  # noqa: SIM905
)
IGNORED = frozenset(("PROTO", "FRAME"))


def construct(ref: Ref, args: tuple[Any, ...]) -> Any:
    """What a global would have made of `args`, where that is data; a stub for a class; `Refused` for a function."""
    name = str(ref)
    if name in REBUILD:
        return _rebuilt(ref.name, args)
    if ref.module in ("builtins", "__builtin__") and ref.name in ("set", "frozenset", "list", "tuple", "dict"):
        if len(args) > 1 or not all(isinstance(a, (list, tuple, set, dict)) for a in args):
            raise Refused(f"it makes a {ref.name} of {_kind(args)}")
        return _collection(ref.name, args[0] if args else ())
    if name in ("collections.OrderedDict", "collections.defaultdict"):
        return _collection("dict", args[0] if ref.name == "OrderedDict" and args else ())
    if name.startswith(("copyreg.", "copy_reg.")):
        if not args or not isinstance(args[0], Ref):
            raise Refused(f"it makes an object of {_kind(args)}")
        return construct(args[0], ())
    if ref.module in STANDARD or name in MAKERS or ref.name.lstrip("_")[:1].isupper():
        return Stub(ref, args)
    raise Refused(f"it calls {short(name)!r}, a function that no weights need{_way_out(name)}")


def _rebuilt(name: str, args: tuple[Any, ...]) -> LazyTensor:
    """A view of a storage, as torch's own functions of that name would make it."""
    if name == "_rebuild_from_type_v2":
        inner, _, given = args[:3]
        if not isinstance(inner, Ref) or str(inner) not in REBUILD or not isinstance(given, tuple):
            raise Refused(f"it rebuilds a tensor by {_kind(inner)}{_way_out(str(inner))}")
        return _rebuilt(inner.name, given)
    if name.startswith("_rebuild_parameter"):
        if not isinstance(args[0], LazyTensor):
            raise Refused(f"it makes a parameter of {_kind(args[0])}")
        return args[0]
    storage, offset, shape, strides = args[:4]
    shape, strides = _sizes(shape), _sizes(strides)
    if not isinstance(storage, LazyTensor) or type(offset) is not int or len(shape) != len(strides) or offset < 0:
        raise Refused("it rebuilds a tensor of what is no storage")
    if shape and offset + span(shape, strides) > storage.shape[0]:
        raise Refused("it has a tensor that reaches beyond its storage")
    if not shape and offset >= storage.shape[0]:
        raise Refused("it has a tensor that reaches beyond its storage")
    return LazyTensor(storage.path, storage.offset + offset * storage.dtype.itemsize, storage.dtype, shape, strides)


def _sizes(value: Any) -> tuple[int, ...]:
    given = value.args[0] if isinstance(value, Stub) and value.args else value
    if not isinstance(given, (tuple, list)) or not all(type(n) is int and 0 <= n < 1 << 40 for n in given):
        raise Refused("it has a tensor of no shape")
    return tuple(given)


def _collection(kind: str, members: Any) -> Any:
    if kind == "dict":
        pairs = members.items() if isinstance(members, dict) else members
        return _pairs([part for pair in pairs for part in pair])
    return {"set": set, "frozenset": frozenset, "list": list, "tuple": tuple}[kind](
        _keys(list(members)) if "set" in kind else members
    )


def _pairs(flat: list[Any]) -> dict[Any, Any]:
    if len(flat) % 2:
        raise Refused("it is damaged (a key without a value)")
    return dict(zip(_keys(flat[::2]), flat[1::2], strict=True))


def _keys(values: list[Any]) -> list[Any]:
    """Keys are plain: the hash of tuples within tuples, each twice in the next, would never be done."""
    for value in values:
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, (tuple, frozenset)) and part:
                raise Refused("it uses a tuple of tuples as a key")
    return values


def _kind(value: Any) -> str:
    return short(str(value)) if isinstance(value, Ref) else f"a {type(value).__name__}"


def _way_out(name: str) -> str:
    return next((f"; {way}" for key, way in WAYS_OUT.items() if key in name), "")
