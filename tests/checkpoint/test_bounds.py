"""Reading a file takes memory and time in proportion to its size, whatever it contains."""

import copy
import io
import pickle
import signal
import struct
import zipfile
from collections import OrderedDict
from typing import ClassVar

import numpy as np
import pytest
import torch
from memory import peak_memory

from pwlu_det.checkpoint.reader import read_checkpoint
from pwlu_det.errors import CheckpointError

MB = 2**20


@pytest.fixture
def refused(tmp_path):
    """Check that a file is refused with one line, within 10 s and a memory of a few times its size."""

    def check(name: str, content: bytes, message: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        signal.alarm(10)  # kills this process
        try:
            with peak_memory() as peak, pytest.raises(CheckpointError, match=message) as error:
                read_checkpoint(str(path))
        finally:
            signal.alarm(0)
        assert peak.growth < 4 * len(content) + 20 * MB
        assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600

    return check


# --- pickles --------------------------------------------------------------------------------------

BOMB = b"N" + b"2\x86" * 80  # a tuple of two references to a tuple of two references, and so on
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R"
DTYPE = b"cnumpy\ndtype\nU\x02f4\x85R"
LARGE = "much larger than the file"
BOMBS = {
    "a value": (b"}U\x01w" + BOMB + b"s", LARGE),
    "a key": (b"}" + BOMB + b"Ns", "keys are not strings"),
    "a key of a dictionary from a mark": (b"(" + BOMB + b"Nd", "keys are not strings"),
    "a key of an OrderedDict": (b"ccollections\nOrderedDict\n](" + BOMB + b"Nt\x85a\x85R", LARGE),
    "keys of a Counter": (b"ccollections\nCounter\n" + BOMB + b"\x85R", LARGE),
    "a type code": (b"cnumpy\ndtype\n" + BOMB + b"\x85R", "array of type"),
    "a byte order": (DTYPE + b"(K\x03" + BOMB + b"tb", "DtypeStandIn|_Dtype|incomplete|dictionary"),
    "a shape": (
        ARRAY + b"(K\x01J\xff\xff\xff\xff" + BOMB + b"\x86" + DTYPE + b"\x89U\x00tb",
        "array of shape",
    ),
    "content": (ARRAY + b"(K\x01)" + DTYPE + b"\x89" + BOMB + b"tb", LARGE),
    "an encoding": (b"c_codecs\nencode\nX\x01\x00\x00\x00a" + BOMB + b"\x86R", "bytes encoded as"),
    "itself": (b"]q\x00h\x00a", "nested too deeply"),
}


@pytest.mark.parametrize("place", BOMBS)
def test_small_pickle_of_exponential_size(place, refused):
    program, message = BOMBS[place]
    refused("bomb.pkl", b"\x80\x02" + program + b".", message)


class Call:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def frombuffer(content, dtype, shape, order):
    """Pickled by the name of NumPy's function, and never called."""


frombuffer.__module__, frombuffer.__qualname__ = "numpy._core.numeric", "_frombuffer"


def dumps(content, protocol=2) -> bytes:
    """Pickle without comparing functions with those of their modules."""

    class Pickler(pickle._Pickler):
        def save_global(self, obj, name=None):
            self.write(b"c" + f"{obj.__module__}\n{obj.__qualname__}\n".encode())

        dispatch: ClassVar = {**pickle._Pickler.dispatch, type(dumps): save_global}

    file = io.BytesIO()
    Pickler(file, protocol).dump(content)
    return file.getvalue()


def test_one_string_that_becomes_many_arrays(refused):
    """Each array is a copy: 100 of 2 MB."""
    content = bytes(2 * MB)
    for text in (content, content.decode("latin1")):
        arrays = {f"w{i}": Call(frombuffer, text, np.dtype("u1"), (2 * MB,), "C") for i in range(100)}
        refused("copies.pkl", dumps(arrays, protocol=4), LARGE)


def test_one_list_that_becomes_many_dictionaries(refused):
    """Each OrderedDict is a copy of the list: 3,000 of 3,000 items."""
    pairs = [[str(i), i] for i in range(3000)]
    refused("copies.pkl", dumps({f"w{i}": Call(OrderedDict, pairs) for i in range(3000)}), LARGE)


SIZES = {
    "a memo index": (b"\x80\x02}r\xff\xff\xff\x7f", "it contains no tensors"),
    "bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40), "EOFError"),
    "a bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 2**40), "EOFError"),
    "a frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**40), "IndexError"),
    "text": (b"\x80\x04\x8d" + struct.pack("<Q", 2**40), "EOFError"),
    "an integer": (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1), "EOFError"),
}


@pytest.mark.parametrize("what", SIZES)
def test_size_that_a_small_pickle_states(what, refused):
    program, message = SIZES[what]
    refused("size.pkl", program + b".", message)


# --- files of torch.save --------------------------------------------------------------------------


def tensor_file(content, zipped=True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def rewritten(content: bytes, change=lambda name, entry: entry, compression=zipfile.ZIP_STORED) -> bytes:
    """An archive with its entries changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return file.getvalue()


def test_compressed_archive(refused):
    compressed = rewritten(tensor_file({"w": torch.zeros(50_000_000)}), compression=zipfile.ZIP_DEFLATED)
    assert len(compressed) < MB
    refused("deflated.pth", compressed, "it is compressed")


def test_entries_that_overlap(refused):
    """100 entries refer to the same 2 MB."""
    file = io.BytesIO(rewritten(tensor_file({"w": torch.zeros(500_000)})))
    with zipfile.ZipFile(file, "a") as archive:
        for i in range(100):
            again = copy.copy(archive.getinfo("archive/data/0"))
            again.filename = f"archive/data/{i + 1}"
            archive.filelist.append(again)
        archive._didModify = True
    refused("overlap.pth", file.getvalue(), "its entries are larger than the file")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_that_are_larger_than_the_file(zipped, refused):
    expanded = torch.zeros(1).expand(10**6, 10**6)
    refused("expanded.pth", tensor_file({"w": expanded}, zipped), LARGE)
    base = torch.zeros(10**6)
    shared = {f"w{i}": base[i:] for i in range(100)}
    refused("shared.pth", tensor_file(shared, zipped), LARGE)
    windows = {"w": base.as_strided((10**5, 10**5), (1, 1))}
    refused("windows.pth", tensor_file(windows, zipped), LARGE)


def storage(key: str, numel: int) -> bytes:
    """The pickled reference to a storage."""
    return (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00"
        + key.encode()
        + b"X\x03\x00\x00\x00cpu\x8a\x08"
        + struct.pack("<q", numel)
        + b"tQ"
    )


def model(numel: int, offset: int, size: int, stride: int) -> bytes:
    """The pickle of a model with one tensor."""
    numbers = (b"\x8a\x08" + struct.pack("<q", n) for n in (offset, size, stride))
    place = b"%b%b\x85%b\x85" % tuple(numbers)
    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
        + storage("0", numel)
        + place
        + b"\x89NtRs."
    )


def in_archive(pickled: bytes, record: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("data.pkl", pickled), ("version", b"3\n"), ("data/0", record)):
            archive.writestr(f"a/{name}", content)
    return file.getvalue()


BEYOND = {
    "a storage that is larger than its record": ((10**6, 0, 5, 1), "has 40 bytes instead of 1000000"),
    "a storage of a negative size": ((-10, 0, 5, 1), "storage of -10 elements"),
    "a size": ((10, 0, 11, 1), "beyond its storage"),
    "a stride": ((10, 0, 5, 3), "beyond its storage"),
    "an offset": ((10, 6, 5, 1), "beyond its storage"),
    "a negative stride": ((10, 9, 5, -1), "tensor of shape"),
    "a negative offset": ((10, -1, 5, 1), "tensor of shape"),
    "a negative size": ((10, 0, -5, 1), "tensor of shape"),
    "a huge stride": ((10, 0, 5, 2**62), "beyond its storage"),
    "a huge size": ((10, 0, 2**62, 0), LARGE),
}


@pytest.mark.parametrize("what", BEYOND)
def test_tensor_beyond_its_storage(what, refused):
    numbers, message = BEYOND[what]
    refused("beyond.pth", in_archive(model(*numbers), bytes(40)), message)


def test_tensor_within_its_storage(tmp_path):
    """The counterpart of the test above, which shows that its files are otherwise valid."""
    path = tmp_path / "within.pth"
    path.write_bytes(in_archive(model(10, 1, 5, 2), np.arange(10, dtype="<f4").tobytes()))
    assert read_checkpoint(str(path))["model"]["w"].tolist() == [1, 3, 5, 7, 9]
    assert torch.load(path, weights_only=True)["w"].tolist() == [1, 3, 5, 7, 9]


def test_legacy_storage_that_the_file_does_not_contain(refused):
    head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    pickled = model(2**40, 0, 5, 1).replace(
        b"cpu\x8a\x08" + struct.pack("<q", 2**40) + b"tQ", b"cpu\x8a\x08" + struct.pack("<q", 2**40) + b"NtQ"
    )
    refused("legacy.pth", head + pickled + pickle.dumps([], 2), "KeyError")
    refused("legacy.pth", head + pickled + pickle.dumps(["0"], 2) + struct.pack("<q", 2**40), "truncated")


def test_bomb_in_a_file_of_torch_save(refused):
    refused("bomb.pth", in_archive(b"\x80\x02" + BOMBS["a value"][0] + b".", b""), LARGE)
    refused("bomb.pth", in_archive(b"\x80\x02" + BOMBS["a key"][0] + b".", b""), "keys are not strings")
    metadata = b"ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00_metadata" + BOMB + b"sb"
    refused("bomb.pth", in_archive(b"\x80\x02" + metadata + b".", b""), LARGE)


def test_archive_with_many_entries(tmp_path):
    file = io.BytesIO(rewritten(tensor_file({"w": torch.arange(3.0)})))
    with zipfile.ZipFile(file, "a") as archive:
        for i in range(30_000):
            archive.writestr(f"x{i}", b"")
    path = tmp_path / "many.pth"
    path.write_bytes(file.getvalue())
    with peak_memory() as peak:
        assert read_checkpoint(str(path))["model"]["w"].tolist() == [0, 1, 2]
    assert peak.growth < 20 * len(file.getvalue()) + 20 * MB
