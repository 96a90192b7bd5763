"""Pickles of NumPy arrays, read without calling anything that the file names.

Python's unpickler asks for each name that a file uses; here it is given stand-ins. With NumPy's own classes a
file could still set the fields of dtypes and arrays, some of which decide which memory is read. The stand-ins
hand NumPy bytes, a plain type and a shape.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np


def load_arrays(file: BinaryIO) -> Any:
    """The object in a pickle: of dictionaries, lists, tuples, strings, numbers and arrays of numbers.

    Raises:
        pickle.UnpicklingError: the file asks for anything else. Nothing of it is made or called.
        Exception: of whatever type, where the file is no pickle.
    """
    return _resolve(_Unpickler(file, encoding="latin1").load())


class _Unpickler(pickle._Unpickler):
    """The one that is written in Python: that in C gives a file of ten bytes any memory that it asks for."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _STAND_INS:
            raise pickle.UnpicklingError(
                f"the file asks for {module}.{name}; only dictionaries of NumPy arrays are admitted"
            )
        return _STAND_INS[f"{module}.{name}"]


class _Dict(dict):
    def __setstate__(self, state: Any) -> None:
        """What an ordered dictionary has beside its items is not needed."""


class _Dtype:
    """The type of an array: its code, and a byte order that follows."""

    def __init__(self, code: Any, *_):
        if not isinstance(code, str) or not re.fullmatch("[fiu][1248]|b1", code):
            raise pickle.UnpicklingError(
                f"the file holds an array of type {code!r}; only numbers are admitted"
            )
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = {">": ">", "<": "<"}.get(state[1], "=")


class _Array:
    """An array that the file has begun; what it holds follows."""

    def __init__(self, *_):
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, content = state
        self.array = _make_array(content, dtype, shape, "F" if column_major else "C")


def _make_array(content: Any, dtype: Any, shape: tuple, order: str = "C") -> np.ndarray:
    if isinstance(content, str):  # Python 2 did not tell bytes from text
        content = content.encode("latin1")
    if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError("the file holds an array that is not of plain numbers")
    if any(size < 0 for size in shape):
        raise pickle.UnpicklingError(f"the file holds an array of shape {shape}")
    stored = np.frombuffer(content, np.dtype(dtype.order + dtype.code)).reshape(shape, order=order)
    return stored.astype(dtype.code)  # a copy that may be written, in the byte order of this machine


def _make_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the file holds bytes encoded as {encoding!r}; only latin1 is admitted")
    return text.encode(encoding)


def _resolve(value: Any) -> Any:
    """The same with arrays in place of their stand-ins."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_resolve, value))
    return value


class _Function:
    """What a file may call, and nothing else: by itself a function lets a pickle set its attributes."""

    __slots__ = ("call",)

    def __init__(self, call: Callable):
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file sets what is not its own")


# What a file may name, and what it gets.
_STAND_INS = {
    "collections.OrderedDict": _Dict,
    "_codecs.encode": _Function(_make_bytes),
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_core}.multiarray._reconstruct"] = _Array
    _STAND_INS[f"{_core}.multiarray.scalar"] = _Function(
        lambda dtype, content: _make_array(content, dtype, ())
    )
    _STAND_INS[f"{_core}.numeric._frombuffer"] = _Function(_make_array)
