"""Weight files: whatever they contain, they are read as tensors or refused, and no code in them is run."""

import contextlib
import io
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from fuzzing import attempt, fuzz
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from pwlu_det import PWLU
from pwlu_det.checkpoint.checkpointer import Checkpointer
from pwlu_det.checkpoint.reader import read_checkpoint
from pwlu_det.errors import CheckpointError

ENDINGS = (".pth", ".pkl", ".pyth", ".bin")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.act = PWLU(2, num_intervals=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights ü")


def read(target: str, path, content: bytes) -> None:
    """Read a file, and load the result into a model."""
    path.write_bytes(content)
    result = attempt(target, lambda: read_checkpoint(str(path)), CheckpointError)
    if isinstance(result, Exception):
        assert str(path) in str(result) and "\n" not in str(result)
        return
    assert all(type(value) in (torch.Tensor, nn.Parameter) for value in result["model"].values())
    attempt(f"{target}, loading", lambda: load(path), CheckpointError)


def load(path) -> None:
    model = Model()
    Checkpointer(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)).load(str(path))


def torch_file(content, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


STATE = Model().state_dict()
ARRAYS = {name: value.numpy() for name, value in STATE.items()}
VALID = {
    "zip": (".pth", torch_file({"model": STATE, "iteration": 3, "trainer": {"a": [1, {"b": 2.0}]}})),
    "legacy": (".pth", torch_file({"model": STATE}, zipped=False)),
    "pycls": (".pyth", torch_file({"model_state": STATE})),
    **{
        f"pickle {protocol}": (".pkl", pickle.dumps({"model": ARRAYS, "__author__": "x"}, protocol))
        for protocol in (2, 3, 4, 5)
    },
    "caffe2": (".pkl", pickle.dumps({"blobs": OrderedDict(conv1_w=ARRAYS["conv1.weight"])}, 2)),
}


@pytest.mark.parametrize("kind", VALID)
def test_valid_files_are_read_unchanged(kind, folder):
    ending, content = VALID[kind]
    path = folder / f"whole{ending}"
    path.write_bytes(content)
    model = read_checkpoint(str(path))["model"]
    if kind == "caffe2":
        assert torch.equal(model["conv1_w"], STATE["conv1.weight"])
        return
    expected = {n: v for n, v in STATE.items() if kind != "pycls" or "num_batches_tracked" not in n}
    assert model.keys() == expected.keys()
    for name, value in expected.items():
        assert model[name].dtype == value.dtype and torch.equal(model[name], value), name


STARTS = [
    b"",
    b"PK\x03\x04",
    b"\x80\x02",
    b"\x80\x04\x95",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    b"\x80\x02}(",
]


@fuzz(80, 2500)
@given(st.sampled_from(ENDINGS), st.sampled_from(STARTS), st.binary(max_size=200))
def test_random_bytes(folder, ending, start, content):
    read("checkpoint: random bytes", folder / f"random{ending}", start + content)


OPCODES = st.sampled_from([opcode.code.encode("latin1") for opcode in pickletools.opcodes])
PROGRAMS = st.lists(
    st.tuples(OPCODES, st.one_of(st.just(b""), st.binary(max_size=5), st.just(b"os\nmkdir\n")))
)


@fuzz(80, 2500)
@given(st.sampled_from(("pkl", "zip", "legacy")), PROGRAMS)
def test_random_pickle_programs(folder, kind, program):
    pickled = b"\x80\x02" + b"".join(code + argument for code, argument in program) + b"."
    ending, content = in_file(kind, pickled)
    read("checkpoint: random pickle programs", folder / f"program{ending}", content)


def in_file(kind: str, pickled: bytes) -> tuple[str, bytes]:
    """The extension and content of a file that contains the given pickle."""
    if kind == "pkl":
        return ".pkl", pickled
    if kind == "legacy":
        head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        return ".pth", head + pickled + pickle.dumps([], 2)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", content)
    return ".pth", buffer.getvalue()


@fuzz(80, 2500)
@given(st.data(), st.sampled_from(sorted(VALID)))
def test_damaged_files(folder, data, kind):
    ending, content = VALID[kind]
    how = data.draw(st.sampled_from(("cut", "flip", "insert", "overwrite")))
    at = data.draw(st.integers(0, len(content) - 1))
    piece = data.draw(st.binary(min_size=1, max_size=8))
    content = {
        "cut": content[:at],
        "flip": content[:at] + bytes([content[at] ^ piece[0]]) + content[at + 1 :],
        "insert": content[:at] + piece + content[at:],
        "overwrite": content[:at] + piece + content[at + len(piece) :],
    }[how]
    read("checkpoint: damaged files", folder / f"damaged{ending}", content)


RUBBISH = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=5),
        st.sampled_from(
            [
                torch.zeros(2, 1, 1, 1),
                torch.zeros(3),
                torch.zeros(2, dtype=torch.int64),
                torch.zeros(0),
                torch.full((2,), float("nan")),
                torch.zeros(2, dtype=torch.complex64),
                torch.zeros(2, device="meta"),
                torch.zeros(2).to_sparse(),
                torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.quint8),
                np.zeros(2),
                np.zeros((2, 3), ">f4", order="F"),
                np.float32(3),
                np.array(["a"]),
                np.array(1),
                np.zeros(2, "f4,i4"),
                np.array([{}, None]),
                np.zeros(2, complex),
                np.zeros(2, "M8[s]"),
            ]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.sampled_from([*STATE, "model", "blobs", "__author__", "x_momentum", ""]), st.integers()
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)
NAMES = [
    *STATE,
    *(f"module.{name}" for name in STATE),
    "conv1_w",
    "conv1_b",
    "pred_w",
    "bbox_pred_b",
    "a.b.norm.bias",
]
MODELS = st.dictionaries(
    st.sampled_from(NAMES),
    st.sampled_from(
        [*STATE.values(), torch.zeros(()), torch.zeros(1, 0), torch.ones(8).half(), torch.zeros(2).bool()]
    ),
    min_size=1,
)
FRAMES = {
    "as it is": lambda inner: inner,
    "model": lambda inner: {"model": inner},
    "zoo": lambda inner: {"model": inner, "__author__": "x", "matching_heuristics": True},
    "blobs": lambda inner: {"blobs": inner},
    "pycls": lambda inner: {"model_state": inner},
    "optimizer": lambda inner: {"model": STATE, "optimizer": inner},
}


@fuzz(120, 3000)
@given(
    st.one_of(RUBBISH, MODELS), st.sampled_from(sorted(FRAMES)), st.sampled_from(ENDINGS), st.integers(0, 5)
)
def test_files_with_other_contents(folder, inner, frame, ending, protocol):
    if ending == ".pkl" and isinstance(inner, dict):
        inner = {name: as_array(value) for name, value in inner.items()}
    whole = FRAMES[frame](inner)
    try:
        content = pickle.dumps(whole, protocol) if ending == ".pkl" else torch_file(whole, protocol > 2)
    except (NotImplementedError, RuntimeError, AttributeError):  # some tensors cannot be saved
        assume(False)
    read("checkpoint: files of other things", folder / f"other{ending}", content)


def as_array(value):
    plain = type(value) is torch.Tensor and value.layout == torch.strided and value.is_cpu
    return value.numpy() if plain and not value.is_quantized else value


# --- code in files --------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def calls(canary: str):
    """Callables with pickled arguments, each of which would create the folder ``canary``."""
    command = f"mkdir '{canary}'"
    python = f"__import__('os').mkdir({canary!r})"
    array = b"cnumpy\ndtype\n" + text("f4") + b"\x85R"
    return [
        ("os", "mkdir", text(canary)),
        ("posix", "mkdir", text(canary)),
        ("os", "system", text(command)),
        ("subprocess", "getoutput", text(command)),
        ("builtins", "eval", text(python)),
        ("builtins", "exec", text(python)),
        ("__builtin__", "eval", text(python)),
        ("timeit", "timeit", text(python)),
        ("numpy.testing", "runstring", text(python) + b"}"),
        ("numpy.testing._private.utils", "runstring", text(python) + b"}"),
        ("torch.jit.frontend", "eval", text(python)),
        ("torch.utils.collect_env", "run", text(command)),
        ("pathlib", "Path.mkdir", b"cpathlib\nPath\n" + text(canary) + b"\x85R"),
        ("numpy", "dtype.__class__.__call__", array),
        ("collections", "OrderedDict.__init__.__globals__", text(canary)),
    ]


CALLS = {
    "reduce": lambda module, name, arguments: f"c{module}\n{name}\n(".encode() + arguments + b"tR",
    "stack": lambda module, name, arguments: text(module) + text(name) + b"\x93(" + arguments + b"tR",
    "inst": lambda module, name, arguments: b"(" + arguments + f"i{module}\n{name}\n".encode(),
    "obj": lambda module, name, arguments: f"(c{module}\n{name}\n".encode() + arguments + b"o",
    "newobj": lambda module, name, arguments: f"c{module}\n{name}\n(".encode() + arguments + b"t\x81",
    "build": lambda module, name, arguments: (
        b"ccollections\nOrderedDict\n)R}"
        + text("__setstate__")
        + f"c{module}\n{name}\n".encode()
        + b"sb("
        + arguments
        + b"tb"
    ),
    "array of objects": lambda module, name, arguments: (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01K\x01\x85"
        b"cnumpy\ndtype\n"
        + text("O8")
        + b"\x85R\x89]("
        + f"c{module}\n{name}\n(".encode()
        + arguments
        + b"tRetb"
    ),
}
PLACES = {
    "alone": lambda call: b"\x80\x02" + call + b".",
    "in the model": lambda call: b"\x80\x02}" + text("model") + b"}" + text("conv1.weight") + call + b"ss.",
    "beside the model": lambda call: b"\x80\x02}" + text("model") + b"}s" + text("x") + call + b"s.",
    "as a name": lambda call: b"\x80\x02}" + call + b"K\x01s.",
    "dropped": lambda call: b"\x80\x02" + call + b"0}.",
}


@fuzz(150, 2000)
@given(
    st.integers(0, len(calls("")) - 1),
    st.sampled_from(sorted(CALLS)),
    st.sampled_from(sorted(PLACES)),
    st.sampled_from(("pkl", "zip", "legacy")),
)
def test_code_in_a_file_is_not_run(folder, which, how, place, kind):
    canary = folder / "ran"
    pickled = PLACES[place](CALLS[how](*calls(str(canary))[which]))
    ending, content = in_file(kind, pickled)
    path = folder / f"code{ending}"
    path.write_bytes(content)
    result = attempt("checkpoint: code", lambda: read_checkpoint(str(path)), CheckpointError)
    assert isinstance(result, CheckpointError)
    assert not canary.exists()


def test_that_code_would_run(tmp_path):
    """Shows that the test above can fail: Python's own unpickler runs the code."""
    canary = tmp_path / "ran"
    for which in calls(str(canary))[:6]:
        for place in PLACES.values():
            with contextlib.suppress(TypeError, pickle.UnpicklingError):  # from the result of the call
                pickle.loads(place(CALLS["reduce"](*which)))
            canary.rmdir()
