"""Read pickles from untrusted files, within memory and time proportional to the size of the file.

No function that a file names is called: each name is looked up in a table of stand-ins. Two weaknesses of
Python's unpickler are mended. It allocates the size that a file states before it reads that much, and it
creates objects that contain the same content many times: a tuple of two references to a tuple of two
references, and so on, is exponentially larger than its pickle.
"""

from __future__ import annotations

import io
import pickle
import reprlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

_LARGE_READ = 2**16  # bytes; smaller reads need not be compared with the size of the file
_MAX_TUPLE_KEY, _MAX_INT_KEY = 8, 2**64  # hashing a key takes time proportional to its size
_MAX_DIMS = 64
_MIN_NODES, _MIN_BYTES = 10_000, 2**20  # allowed in a file of any size
_NO_ATTRIBUTES = "the file sets attributes of an object that has none"


class StandIn:
    """Base class of the objects that a pickle creates by the names of other classes."""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(_NO_ATTRIBUTES)


class Function:
    """A function that a pickle may call. It is wrapped so that the pickle cannot set its attributes."""

    __slots__ = ("call",)

    def __init__(self, call: Callable):
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


class Pending(StandIn):
    """An object that :func:`resolve` creates by ``make(resolver)``, after its size has been checked."""

    def __init__(self, make: Callable[[Resolver], Any]):
        self.make = make


class DictStandIn(dict, StandIn):
    """A dictionary of another class."""

    kind: type[dict] = OrderedDict

    def __init__(self, initial: Any = ()):
        super().__init__()
        self.initial, self.state = initial, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class CounterStandIn(DictStandIn):
    kind = Counter


class BoundedUnpickler(pickle._Unpickler):
    """Creates built-in types and the given stand-ins only.

    This is the pure-Python unpickler: the one in C allocates any amount of memory for a ten-byte file.

    Args:
        file: a file, from its current position.
        stand_ins: as :data:`STAND_INS`.
        allowed: what ``stand_ins`` create, for error messages.
    """

    def __init__(self, file: BinaryIO, stand_ins: dict[str, Any], allowed: str):
        super().__init__(_File(file), encoding="latin1")
        self.stand_ins, self.allowed = stand_ins, allowed

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.stand_ins:
            raise pickle.UnpicklingError(
                f"the file refers to {module}.{name}; only {self.allowed} are allowed"
            )
        return self.stand_ins[f"{module}.{name}"]

    def load_refused(self) -> None:
        raise pickle.UnpicklingError(f"the file contains other objects; only {self.allowed} are allowed")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        known = isinstance(function, Function) or (
            isinstance(function, type) and issubclass(function, StandIn)
        )
        if not known or type(arguments) is not tuple:
            self.load_refused()
        self.stack[-1] = function(*arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], StandIn):
            raise pickle.UnpicklingError(_NO_ATTRIBUTES)
        self.stack[-1].__setstate__(state)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            self.load_refused()
        for key, value in zip(items[::2], items[1::2]):
            target[check_key(key)] = value

    def load_bytearray8(self) -> None:  # Python's own allocates the size that the file states, filled with 0
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch: ClassVar = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        **dict.fromkeys(
            (
                *(pickle.INST[0], pickle.OBJ[0], pickle.NEWOBJ[0], pickle.NEWOBJ_EX[0], pickle.PERSID[0]),
                *(pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0], pickle.NEXT_BUFFER[0]),
                *(pickle.READONLY_BUFFER[0], pickle.EMPTY_SET[0], pickle.ADDITEMS[0], pickle.FROZENSET[0]),
            ),
            load_refused,
        ),
    }


class _File:
    """A file whose reads never ask for more than it has, since Python allocates that much first."""

    def __init__(self, file: BinaryIO):
        self.file, self.readline = file, file.readline
        self.size = file_size(file)

    def read(self, size: int) -> bytes:
        if size > _LARGE_READ:
            size = min(size, self.size - self.file.tell())
        return self.file.read(size)


def file_size(file: BinaryIO) -> int:
    position = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(position)
    return size


def check_key(key: Any) -> Any:
    """Return ``key``, unless hashing it could take long.

    Raises:
        pickle.UnpicklingError: it is neither a string, bytes, a number, None, nor a short tuple of these.
    """
    parts = key if type(key) is tuple and len(key) <= _MAX_TUPLE_KEY else (key,)
    for part in parts:
        is_small = type(part) is not int or abs(part) < _MAX_INT_KEY
        if type(part) not in (str, bytes, bool, int, float, type(None)) or not is_small:
            raise pickle.UnpicklingError(
                "the file contains a dictionary whose keys are not strings or numbers"
            )
    return key


def resolve(content: Any, size: int, growth: int) -> Any:
    """Replace the stand-ins in the content of a pickle.

    Args:
        content: as loaded by :class:`BoundedUnpickler`.
        size: the file's size in bytes. Each object takes at least a byte of it, unless it is referred to more
            than once; it is an error if the content contains more objects than that, repetitions included.
        growth: the size that all pending objects together may have, in units of ``size``.

    Raises:
        pickle.UnpicklingError: the content is too large for the file's size.
    """
    return Resolver(size, growth)(content)


class Resolver:
    def __init__(self, size: int, growth: int):
        self._nodes, self._bytes = max(size, _MIN_NODES), max(growth * size, _MIN_BYTES)
        self._made: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        self._nodes -= 1
        if self._nodes < 0:
            raise _too_large()
        if isinstance(value, Pending):
            if id(value) not in self._made:
                self._made[id(value)] = value.make(self)
            return self._made[id(value)]
        if isinstance(value, DictStandIn):
            return self._make_dict(value)
        if type(value) is dict:
            return {key: self(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(self, value))
        if isinstance(value, (StandIn, Function, type)):
            raise pickle.UnpicklingError("the file contains an object that is incomplete")
        return value

    def charge(self, num_bytes: int) -> None:
        """Count the size of an object that is about to be created."""
        self._bytes -= num_bytes
        if self._bytes < 0:
            raise _too_large()

    def _make_dict(self, value: DictStandIn) -> dict:
        initial = self(value.initial)
        made = value.kind()
        for key, item in initial.items() if isinstance(initial, dict) else initial:
            made[check_key(key)] = item
        for key, item in value.items():
            made[key] = self(item)
        state = value.state
        if isinstance(state, dict) and "_metadata" in state:  # the versions of a model's modules
            made._metadata = self(state["_metadata"])
        return made


def _too_large() -> pickle.UnpicklingError:
    return pickle.UnpicklingError("it would become much larger than the file: it refers to itself many times")


def is_shape(value: Any) -> bool:
    """Whether ``value`` is a tuple of non-negative integers, no more and no larger than tensors may have."""
    return (
        type(value) is tuple
        and len(value) <= _MAX_DIMS
        and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def short(value: Any) -> str:
    """``repr(value)`` for error messages, cut where it is long."""
    return reprlib.repr(value)


def _encode(text: str, encoding: str = "") -> Pending:
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError(
            f"the file contains bytes encoded as {short(encoding)}; only latin1 is allowed"
        )
    return Pending(lambda resolver: resolver.charge(len(text)) or text.encode("latin1"))


STAND_INS = {
    "_codecs.encode": Function(_encode),
    "collections.OrderedDict": DictStandIn,
    "collections.Counter": CounterStandIn,
}
"""For each name that a pickle may refer to, a subclass of StandIn, a Function, or a constant."""
