"""Files of torch.save are read as they were saved."""

import io
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch
from kill_and_resume import differences
from torch import nn

from pwlu_det.checkpoint.checkpointer import Checkpointer
from pwlu_det.checkpoint.reader import read_checkpoint, read_iteration
from pwlu_det.checkpoint.tensor_file import load_tensors
from pwlu_det.errors import CheckpointError

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(getattr(torch, name) for name in ("uint16", "uint32", "float8_e4m3fn") if hasattr(torch, name)),
]
CONTENT = {
    "numbers": [1, -(2**70), 1.5, float("inf"), 1 + 2j, True, None, "ä", b"", b"\x00\xff", bytearray(b"ab")],
    "containers": ([], (), {}, set(), {1, "a"}, OrderedDict(a=1), Counter(a=2), {1: {2: 3}}, {(1, "a"): 0}),
    "of torch": [torch.Size([2, 3]), torch.float32, torch.device("cpu"), torch.device("cuda:1")],
    "tensors": [torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES],
    "views": [
        torch.arange(12.0).reshape(3, 4).T[1:, ::2],
        torch.ones(()),
        torch.zeros(0, 3),
        torch.zeros(3, 0),
    ],
    "expanded": torch.ones(1).expand(3, 5),
    "empty": [torch.zeros(0), torch.zeros(2, 0)],
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", CONTENT)
def test_content_is_the_same(name, zipped, tmp_path):
    path = str(tmp_path / "file.pth")
    torch.save(CONTENT[name], path, _use_new_zipfile_serialization=zipped)
    found = load_tensors(path)
    assert differences(CONTENT[name], found) == []
    if isinstance(found, torch.Tensor):
        assert found.stride() == CONTENT[name].stride()


def test_model_is_the_same(tmp_path):
    path = str(tmp_path / "model.pth")
    shared, frozen = torch.ones(2), nn.Parameter(torch.ones(2), requires_grad=False)
    state = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).state_dict()
    torch.save({"model": state, "a": shared, "b": shared[:1], "c": nn.Parameter(shared), "d": frozen}, path)
    found = load_tensors(path)
    assert list(found["model"]) == list(state) and type(found["model"]) is OrderedDict
    assert found["model"]._metadata == state._metadata
    found["a"].fill_(5)
    assert found["b"] == 5  # they still share their storage
    assert type(found["c"]) is nn.Parameter and found["c"].requires_grad and found["c"].is_leaf
    assert type(found["d"]) is nn.Parameter and not found["d"].requires_grad


def test_tensor_with_attributes_is_read_without_them(tmp_path):
    path = str(tmp_path / "file.pth")
    tensor = torch.ones(2)
    tensor.note = "x"
    torch.save(tensor, path)
    assert torch.equal(load_tensors(path), torch.ones(2))


def test_file_from_a_machine_with_another_byte_order(tmp_path):
    path = str(tmp_path / "file.pth")
    torch.save({"w": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            new.writestr(name, b"big" if name.endswith("byteorder") else content)
    with pytest.raises(CheckpointError, match="another byte order"):
        read_checkpoint(path)


def test_expanded_tensors_are_saved_whole(tmp_path):
    """Or the reader would refuse what the checkpointer has written."""
    model = nn.Module()
    model.register_buffer("w", torch.ones(1).expand(1000, 1000))
    Checkpointer(model, str(tmp_path)).save("model")
    assert torch.equal(read_checkpoint(str(tmp_path / "model.pth"))["model"]["w"], torch.ones(1000, 1000))


@pytest.mark.parametrize("iteration", [-1, 2**31, 1.5, "5", True])
def test_iteration_out_of_range(iteration, tmp_path):
    path = str(tmp_path / "model.pth")
    torch.save({"model": {"w": torch.ones(1)}, "iteration": iteration}, path)
    with pytest.raises(CheckpointError, match=r"its iteration is .* it must be an integer from 0 to"):
        read_iteration(path)


def test_iteration_is_found_in_a_damaged_file(tmp_path):
    """The tensors are not read, so that the newest of many checkpoints is found quickly."""
    path = tmp_path / "model.pth"
    file = io.BytesIO()
    torch.save({"model": {"w": torch.full((1000,), 3.0)}, "iteration": 7}, file)
    path.write_bytes(file.getvalue().replace(b"\x00\x00\x40\x40" * 3, b"\x00\x00\x40\x41" * 3))
    assert read_iteration(str(path)) == 7
    with pytest.raises(CheckpointError, match="Bad CRC-32"):
        read_checkpoint(str(path))
