"""Read pickles of NumPy arrays without calling anything that the file names.

Python's unpickler looks up every global name in a file; here each lookup returns a stand-in. NumPy's own
classes would not be safe: a file could set fields of dtypes and arrays that determine which memory is read.
The stand-ins pass only bytes, a numeric type and a shape to NumPy.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np


def load_arrays(file: BinaryIO) -> Any:
    """Load a pickle of dictionaries, lists, tuples, strings, numbers and numeric arrays.

    Raises:
        pickle.UnpicklingError: the file contains anything else, which is neither created nor called.
        Exception: of any type, if the file is not a pickle.
    """
    return _resolve(_Unpickler(file, encoding="latin1").load())


class _Unpickler(pickle._Unpickler):
    """The pure-Python unpickler: the C one lets a ten-byte file allocate any amount of memory."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _STAND_INS:
            raise pickle.UnpicklingError(
                f"the file refers to {module}.{name}; only dictionaries of NumPy arrays are allowed"
            )
        return _STAND_INS[f"{module}.{name}"]


class _Dict(dict):
    def __setstate__(self, state: Any) -> None:
        """Ignore the attributes of an ordered dictionary; its items are enough."""


class _Dtype:
    """A dtype: its type code, and the byte order, which the file sets afterwards."""

    def __init__(self, code: Any, *_):
        if not isinstance(code, str) or not re.fullmatch("[fiu][1248]|b1", code):
            raise pickle.UnpicklingError(
                f"the file contains an array of type {code!r}; only numeric types are allowed"
            )
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = {">": ">", "<": "<"}.get(state[1], "=")


class _Array:
    """An array, whose content the file sets afterwards."""

    def __init__(self, *_):
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, content = state
        self.array = _make_array(content, dtype, shape, "F" if column_major else "C")


def _make_array(content: Any, dtype: Any, shape: tuple, order: str = "C") -> np.ndarray:
    if isinstance(content, str):  # Python 2 did not distinguish bytes from text
        content = content.encode("latin1")
    if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError("the file contains an array that is not numeric")
    if any(size < 0 for size in shape):
        raise pickle.UnpicklingError(f"the file contains an array of shape {shape}; no size may be negative")
    stored = np.frombuffer(content, np.dtype(dtype.order + dtype.code)).reshape(shape, order=order)
    return stored.astype(dtype.code)  # a writable copy in this machine's byte order


def _make_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(
            f"the file contains bytes encoded as {encoding!r}; only latin1 is allowed"
        )
    return text.encode(encoding)


def _resolve(value: Any) -> Any:
    """Replace the stand-ins in ``value`` with arrays."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_resolve, value))
    return value


class _Function:
    """A function that a file may call. It is wrapped so that the file cannot set its attributes."""

    __slots__ = ("call",)

    def __init__(self, call: Callable):
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the file sets attributes of a function")


# The global names that a file may use, and their stand-ins.
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
