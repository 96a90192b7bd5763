"""Read pickles of NumPy arrays.

NumPy's own classes would not be safe: a file could set fields of dtypes and arrays that determine which
memory is read. The stand-ins pass only bytes, a numeric type and a shape to NumPy.
"""

from __future__ import annotations

import math
import re
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np

from pwlu_det.checkpoint.bounded_pickle import (
    STAND_INS,
    BoundedUnpickler,
    Function,
    Pending,
    Resolver,
    StandIn,
    file_size,
    is_shape,
    resolve,
    short,
)

_GROWTH = 2  # an array's bytes, and the text from which older pickles encode them


def load_arrays(file: BinaryIO) -> Any:
    """Load a pickle of dictionaries, lists, tuples, strings, numbers and numeric arrays.

    Memory and time are proportional to the size of the file, and so is the content even if each object in it
    is copied wherever the file refers to it.

    Raises:
        pickle.UnpicklingError: the file contains anything else, which is neither created nor called, or is
            much smaller than its content.
        Exception: of any type, if the file is not a pickle.
    """
    content = BoundedUnpickler(file, _STAND_INS, "dictionaries of NumPy arrays").load()
    return resolve(content, file_size(file), _GROWTH)


class _Dtype(StandIn):
    """A dtype: its type code, and the byte order, which the file sets afterwards."""

    def __init__(self, code: Any, *_):
        if type(code) is not str or not re.fullmatch("[fiu][1248]|b1", code):
            raise UnpicklingError(
                f"the file contains an array of type {short(code)}; only numeric types are allowed"
            )
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="


class _Array(Pending):
    """An array, whose content the file sets afterwards."""

    def __init__(self, *_):
        super().__init__(_make_incomplete)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, content = state
        self.make = _array(content, dtype, shape, "F" if column_major else "C").make


def _make_incomplete(resolver: Resolver) -> np.ndarray:
    raise UnpicklingError("the file contains an array without content")


def _array(content: Any, dtype: Any, shape: tuple, order: str = "C") -> Pending:
    if not is_shape(shape):
        raise UnpicklingError(f"the file contains an array of shape {short(shape)}; no size may be negative")

    def make(resolver: Resolver) -> np.ndarray:
        stored = resolver(content)
        if isinstance(stored, str):  # Python 2 did not distinguish bytes from text
            resolver.charge(len(stored))
            stored = stored.encode("latin1")
        if not isinstance(dtype, _Dtype) or not isinstance(stored, (bytes, bytearray)):
            raise UnpicklingError("the file contains an array that is not numeric")
        size = np.dtype(dtype.code).itemsize * math.prod(shape)
        if size != len(stored):
            raise UnpicklingError(
                f"the file contains an array of {len(stored)} bytes that should have {size}"
            )
        resolver.charge(size)
        array = np.frombuffer(stored, np.dtype(dtype.order + dtype.code)).reshape(shape, order=order)
        return array.astype(dtype.code)  # a writable copy in this machine's byte order

    return Pending(make)


# The global names that a file may use, and their stand-ins.
_STAND_INS = {**STAND_INS, "numpy.ndarray": _Array, "numpy.dtype": _Dtype}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_core}.multiarray._reconstruct"] = _Array
    _STAND_INS[f"{_core}.multiarray.scalar"] = Function(lambda dtype, content: _array(content, dtype, ()))
    _STAND_INS[f"{_core}.numeric._frombuffer"] = Function(_array)
