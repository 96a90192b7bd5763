"""Pickles of NumPy arrays, read without calling anything that the file names.

Python's own unpickler, restricted to NumPy's classes, would still let a file set the fields of dtypes and
arrays, and some of these decide which memory is read. Here NumPy is handed bytes, a plain type and a shape.
"""

from __future__ import annotations

import pickletools
import re
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np


def load_arrays(file: BinaryIO) -> Any:
    """The object in a pickle: of dictionaries, lists, tuples, strings, numbers and arrays of numbers.

    Raises:
        UnpicklingError: the file asks for anything else. Nothing of it is made or called.
        Exception: of whatever type, where the file is no pickle.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(file):
        machine.run(opcode.name, argument)
    return machine.stack.pop()


class _Dtype:
    """The type of an array: its code, and a byte order that follows."""

    def __init__(self, code: Any, *_):
        if not isinstance(code, str) or not re.fullmatch("[fiu][1248]|b1", code):
            raise UnpicklingError(f"the file holds an array of type {code!r}; only numbers are admitted")
        self.code, self.order = code, "="

    def set_state(self, state: tuple) -> None:
        self.order = {">": ">", "<": "<"}.get(state[1], "=")


class _Array:
    """An array that the file has begun; what it holds follows."""

    def __init__(self, *_):
        self.array: np.ndarray | None = None

    def set_state(self, state: tuple) -> None:
        _, shape, dtype, column_major, content = state
        self.array = _make_array(content, dtype, shape, "F" if column_major else "C")


def _make_array(content: Any, dtype: Any, shape: tuple, order: str) -> np.ndarray:
    if isinstance(content, str):  # Python 2 did not tell bytes from text
        content = content.encode("latin1")
    if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
        raise UnpicklingError("the file holds an array that is not of plain numbers")
    if any(size < 0 for size in shape):
        raise UnpicklingError(f"the file holds an array of shape {shape}")
    stored = np.frombuffer(content, np.dtype(dtype.order + dtype.code)).reshape(shape, order=order)
    return stored.astype(dtype.code)  # a copy that may be written, in the byte order of this machine


def _make_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise UnpicklingError(f"the file holds bytes encoded as {encoding!r}; only latin1 is admitted")
    return text.encode(encoding)


# What a file may name, and what is called in its place.
_GLOBALS = {
    "collections.OrderedDict": dict,
    "_codecs.encode": _make_bytes,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    **{
        f"numpy.{core}.{name}": substitute
        for core in ("core", "_core")
        for name, substitute in {
            "multiarray._reconstruct": _Array,
            "multiarray.scalar": lambda dtype, content: _make_array(content, dtype, (), "C"),
            "numeric._frombuffer": _make_array,
        }.items()
    },
}

# The operations of pickletools that need no more than a table.
_ARGUMENTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FROM_MARK = {"TUPLE": tuple, "LIST": list, "DICT": lambda items: dict(zip(items[::2], items[1::2]))}
_WITHOUT_EFFECT = {"PROTO", "FRAME", "STOP"}


class _Machine:
    def __init__(self):
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, operation: str, argument: Any) -> None:
        stack = self.stack
        if operation in _ARGUMENTS:
            stack.append(argument)
        elif operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        elif operation in _CONTAINERS:
            stack.append(_CONTAINERS[operation]())
        elif operation in _TUPLES:
            stack[-_TUPLES[operation] :] = [tuple(stack[-_TUPLES[operation] :])]
        elif operation in _FROM_MARK:
            stack.append(_FROM_MARK[operation](self._pop_to_mark()))
        elif operation == "MARK":
            self._marks.append(len(stack))
        elif operation == "POP":
            stack.pop()
        elif operation in ("APPEND", "APPENDS"):
            items = [stack.pop()] if operation == "APPEND" else self._pop_to_mark()
            stack[-1].extend(items)
        elif operation in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if operation == "SETITEM" else self._pop_to_mark()
            stack[-1].update(zip(items[::2], items[1::2]))
        elif operation in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif operation in ("GET", "BINGET", "LONG_BINGET"):
            value = self._memo[argument]
            stack.append(value if getattr(value, "array", None) is None else value.array)
        elif operation == "GLOBAL":
            stack.append(_find(argument.replace(" ", ".")))
        elif operation == "STACK_GLOBAL":
            stack.append(_find(f"{stack.pop(-2)}.{stack.pop()}"))
        elif operation == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(function(*arguments))
        elif operation == "BUILD":
            self._build(stack.pop())
        elif operation not in _WITHOUT_EFFECT:
            raise UnpicklingError(f"the file makes an object ({operation}); {_ALLOWED}")

    def _build(self, state: Any) -> None:
        value = self.stack[-1]
        if isinstance(value, (_Array, _Dtype)):
            value.set_state(state)
        elif not isinstance(value, dict):  # that of an ordered one says nothing that is needed
            raise UnpicklingError(f"the file makes a {type(value).__name__}; {_ALLOWED}")
        if isinstance(value, _Array):
            self.stack[-1] = value.array

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


_ALLOWED = "only dictionaries of NumPy arrays are admitted"


def _find(name: str) -> Any:
    if name not in _GLOBALS:
        raise UnpicklingError(f"the file asks for {name}; {_ALLOWED}")
    return _GLOBALS[name]
