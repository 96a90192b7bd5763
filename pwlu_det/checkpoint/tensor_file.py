"""Read files that ``torch.save`` has written.

``torch.load(weights_only=True)`` does not call the functions that a file names either. But it allocates
storages of any size for a small file, inflates compressed archives, and does not compare the size of a tensor
with that of the file. So the format is read here:

- since torch 1.6, a zip archive with one pickle and one uncompressed record for each storage;
- before, five pickles in a row, followed by the storages.
"""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from pwlu_det.checkpoint.bounded_pickle import (
    STAND_INS,
    BoundedUnpickler,
    Function,
    Pending,
    Resolver,
    check_key,
    file_size,
    is_shape,
    resolve,
    short,
)

_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # magic number of torch < 1.6
_GROWTH = 16  # tensors that share a storage count once each: tied weights, and expanded tensors


def load_tensors(path: str) -> Any:
    """Load a file of tensors, dictionaries, lists, tuples, sets, strings and numbers.

    Tensors are dense and on the CPU. Memory and time are proportional to the size of the file. All tensors
    together have at most 16 times its size, even if they share storages.

    Raises:
        ValueError, pickle.UnpicklingError: the file contains anything else, is damaged, or is much smaller
            than its content.
        Exception: of any type, if the file is damaged.
    """
    with _unpickled(path) as (content, size):
        return resolve(content, size, _GROWTH)


def load_numbers(path: str) -> dict[str, Any]:
    """The numbers and strings of the dictionary in a file, without reading its tensors; raises as above."""
    with _unpickled(path) as (content, _):
        items = content.items() if isinstance(content, dict) else ()
        return {key: value for key, value in items if type(value) in (bool, int, float, str)}


def check_readable(path: str) -> None:
    """Check a file that has just been written, without reading its tensors; raises as above."""
    with _unpickled(path, device="meta") as (content, size):
        resolve(content, size, _GROWTH)


@contextmanager
def _unpickled(path: str, device: str = "cpu") -> Iterator[tuple[Any, int]]:
    """The content of a file, which can be resolved while it is open, and the size of the file."""
    with open(path, "rb") as f:
        start = f.read(len(_LEGACY_START))
        f.seek(0)
        if start.startswith(b"PK"):
            with zipfile.ZipFile(f) as archive:
                yield _unpickle(archive, file_size(f), device), file_size(f)
        elif start == _LEGACY_START:
            yield _unpickle_legacy(f), file_size(f)
        else:
            raise ValueError("it was not written by torch.save" if start else "it is empty")


def _unpickle(archive: zipfile.ZipFile, size: int, device: str) -> Any:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise ValueError("it is compressed, unlike what torch.save writes")
    if sum(entry.file_size for entry in archive.infolist()) > size:
        raise ValueError("its entries are larger than the file")
    folders = [name.removesuffix("data.pkl") for name in entries if name.split("/")[1:] == ["data.pkl"]]
    if len(folders) != 1:
        raise ValueError("it was not written by torch.save")
    folder = folders[0]
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in entries else b"little"
    records: dict[str, Tensor] = {}

    def read(storage: _Storage) -> Tensor:
        if storage.key not in records:
            entry = entries[f"{folder}data/{storage.key}"]
            if device == "meta":
                records[storage.key] = torch.empty(entry.file_size, dtype=torch.uint8, device=device)
            else:
                with archive.open(entry) as f:  # verifies the checksum, which torch does not
                    records[storage.key] = _read_exactly(f, entry.file_size)
        return storage.view(records[storage.key], order == sys.byteorder.encode())

    with archive.open(entries[f"{folder}data.pkl"]) as f:
        content = _TensorUnpickler(f, read).load()
        while f.read(2**16):  # to its end, where the checksum is verified
            pass
    return content


def _unpickle_legacy(f: BinaryIO) -> Any:
    storages: dict[str, _Storage] = {}
    records: dict[str, Tensor] = {}

    def find(storage: _Storage) -> Tensor:
        return storage.view(records[storage.key], same_order)

    _, _, system = (_TensorUnpickler(f, find).load() for _ in range(3))  # magic number, version, system
    same_order = system["little_endian"] == (sys.byteorder == "little")
    content = _TensorUnpickler(f, find, storages).load()
    for key in _TensorUnpickler(f, find).load():
        num_bytes = int.from_bytes(f.read(8), sys.byteorder) * storages[key].dtype.itemsize
        if num_bytes > file_size(f) - f.tell():
            raise ValueError("it is truncated")
        records[key] = _read_exactly(f, num_bytes)
    return content


def _read_exactly(f: BinaryIO, num_bytes: int) -> Tensor:
    record = torch.empty(num_bytes, dtype=torch.uint8)
    if f.readinto(record.numpy()) != num_bytes:
        raise ValueError("it is truncated")
    return record


class _Storage(NamedTuple):
    """A storage that a pickle refers to."""

    dtype: torch.dtype
    key: str
    numel: int
    read: Callable[[_Storage], Tensor]
    """returns the whole storage as a one-dimensional tensor"""

    def view(self, record: Tensor, same_order: bool) -> Tensor:
        if len(record) != self.numel * self.dtype.itemsize:
            raise ValueError(
                f"its storage {short(self.key)} has {len(record)} bytes instead of {self.numel} {self.dtype}"
            )
        if not same_order and self.dtype.itemsize > 1:
            raise ValueError("it was written on a machine with another byte order")
        return record.view(self.dtype)


class _TensorUnpickler(BoundedUnpickler):
    def __init__(
        self,
        file: BinaryIO,
        read: Callable[[_Storage], Tensor],
        storages: dict[str, _Storage] | None = None,
    ):
        super().__init__(file, _STAND_INS, "tensors")
        self.read_storage, self.storages = read, {} if storages is None else storages

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _, numel, *view = reference
        if kind != "storage" or not isinstance(dtype, _StorageType) or type(key) is not str or any(view):
            self.load_refused()
        if not is_shape((numel,)):
            raise UnpicklingError(f"the file contains a storage of {short(numel)} elements")
        self.storages[key] = _Storage(dtype.dtype, key, numel, self.read_storage)
        return self.storages[key]


class _StorageType(NamedTuple):
    dtype: torch.dtype


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False, _=None, flags: Any = None
) -> Pending:
    return _tensor_of(storage, offset, size, stride, requires_grad, getattr(storage, "dtype", None), flags)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, _, dtype: Any, flags: Any = None
) -> Pending:
    return _tensor_of(storage, offset, size, stride, requires_grad, dtype, flags)


def _tensor_of(storage, offset, size, stride, requires_grad, dtype, flags) -> Pending:
    """A tensor in a storage, whose arguments are still what the file says."""
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype) or flags:
        raise UnpicklingError("the file contains a tensor that is not dense")

    def make(resolver: Resolver) -> Tensor:
        shape, strides = resolver(size), resolver(stride)
        if not is_shape(tuple(shape)) or not is_shape(strides) or not is_shape((offset,)):
            raise UnpicklingError(f"the file contains a tensor of shape {short(shape)}")
        resolver.charge(math.prod(shape) * dtype.itemsize)
        if math.prod(shape):
            last = offset + sum((n - 1) * step for n, step in zip(shape, strides))
            if (
                len(shape) != len(strides)
                or (last + 1) * dtype.itemsize > storage.numel * storage.dtype.itemsize
            ):
                raise UnpicklingError(
                    f"the file contains a tensor of shape {short(shape)} that reaches beyond its storage"
                )
        data = storage.read(storage).untyped_storage()
        tensor = torch.empty(0, dtype=dtype, device=data.device).set_(data, offset, shape, strides)
        return tensor.requires_grad_() if requires_grad is True else tensor

    return Pending(make)


def _parameter(data: Any, requires_grad: Any, *_) -> Pending:
    return Pending(lambda resolver: nn.Parameter(resolver(data), requires_grad is True))


def _tensor_with_attributes(function: Any, kind: Any, arguments: Any, _) -> Any:
    if not isinstance(function, Function) or kind is not _TENSOR or type(arguments) is not tuple:
        raise UnpicklingError("the file contains a tensor of another class")
    return function(*arguments)


def _set(items: Any = ()) -> Pending:
    return Pending(lambda resolver: {check_key(item) for item in resolver(items)})


def _bytearray(content: Any = b"") -> Pending:
    def make(resolver: Resolver) -> bytearray:
        stored = resolver(content)
        if not isinstance(stored, bytes):
            raise UnpicklingError("the file contains a bytearray of other objects than bytes")
        resolver.charge(len(stored))
        return bytearray(stored)

    return Pending(make)


def _complex(real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise UnpicklingError("the file contains a complex number whose parts are not numbers")
    return complex(real, imaginary)


def _device(kind: Any, index: Any = None) -> torch.device:
    return torch.device(kind) if index is None else torch.device(kind, index)


_TENSOR = object()
_STORAGES = {
    **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8},
    **{"Byte": torch.uint8, "Bool": torch.bool},
    **{"ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64},
}

# The global names that a file may use, and their stand-ins.
_STAND_INS = {
    **STAND_INS,
    **{f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    **{f"torch.{name}Storage": _StorageType(dtype) for name, dtype in _STORAGES.items()},
    "torch.storage.UntypedStorage": _StorageType(torch.uint8),
    "torch._utils._rebuild_tensor": Function(_tensor),
    "torch._utils._rebuild_tensor_v2": Function(_tensor),
    "torch._utils._rebuild_tensor_v3": Function(_tensor_v3),
    "torch._utils._rebuild_parameter": Function(_parameter),
    "torch._utils._rebuild_parameter_with_state": Function(_parameter),
    "torch._tensor._rebuild_from_type_v2": Function(_tensor_with_attributes),
    "torch.Tensor": _TENSOR,
    "torch.Size": Function(lambda sizes=(): Pending(lambda resolver: torch.Size(resolver(sizes)))),
    "torch.device": Function(_device),
}
for _module in ("builtins", "__builtin__"):  # Python 3 and 2
    _STAND_INS[f"{_module}.set"] = Function(_set)
    _STAND_INS[f"{_module}.bytes"] = Function(lambda: b"")
    _STAND_INS[f"{_module}.bytearray"] = Function(_bytearray)
    _STAND_INS[f"{_module}.complex"] = Function(_complex)
