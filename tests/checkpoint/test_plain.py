"""Checkpoints contain only types that the reader accepts."""

import enum
import io
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch

from pwlu_det.checkpoint.checkpointer import Checkpointer
from pwlu_det.checkpoint.plain import plain
from pwlu_det.checkpoint.reader import read_checkpoint
from pwlu_det.errors import CheckpointError


@pytest.mark.parametrize(
    "value, expected",
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.25), 0.25),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        ({"best": [np.float64(1.5), (np.int8(2),)]}, {"best": [1.5, (2,)]}),
        (OrderedDict(a=np.int64(1)), OrderedDict(a=1)),
        ({np.int64(4): "key"}, {4: "key"}),
        (Counter(a=2), Counter(a=2)),
        ([None, True, 1, 0.5, "s", b"b", torch.Size([2])], [None, True, 1, 0.5, "s", b"b", torch.Size([2])]),
    ],
)
def test_numpy_scalars_become_python_numbers(value, expected):
    result = plain(value, "state")
    assert result == expected and type(result) is type(expected)
    file = io.BytesIO()
    torch.save(result, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.int64, bool, np.uint8, ">i4", ">f8"])
def test_arrays_become_tensors(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)[::-1]
    result = plain({"a": array}, "state")["a"]
    assert result.tolist() == array.tolist()


class Hook:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"best": [self.value]}


def test_error_names_a_value_of_another_type(tmp_path):
    class Mode(enum.Enum):
        MAX = 1

    model = torch.nn.Linear(1, 1)
    texts = np.array(["text"], dtype=object)
    long = np.ones(2, np.longdouble)
    for value in (Mode.MAX, object(), texts, long, lambda: 0, np.datetime64("2020-01-01")):
        with pytest.raises(CheckpointError, match=r"^model_3\.hook\.best\[0\] is of type .*allowed are"):
            Checkpointer(model, str(tmp_path), hook=Hook(value)).save("model_3")
        assert list(tmp_path.iterdir()) == []
    Checkpointer(model, str(tmp_path), hook=Hook(np.float64(42.5))).save("model_3")
    assert read_checkpoint(str(tmp_path / "model_3.pth"))["hook"] == {"best": [42.5]}


BIG, NESTED = torch.zeros(200_000), []
for _ in range(2000):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    "value, why",
    [
        ({torch.float32: 1}, "keys are not strings or numbers"),
        ({tuple(range(9)): 1}, "keys are not strings or numbers"),
        (torch.eye(2).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.ones(2, device="meta"), "_rebuild_meta_tensor"),
        (torch.ones(2, dtype=torch.complex64).conj(), "a tensor that is not dense"),
        ([BIG[i:] for i in range(30)], "much larger than the file"),
        (NESTED, "recursion depth"),
    ],
)
def test_file_that_could_not_be_read_back_is_not_written(tmp_path, value, why):
    with pytest.raises(CheckpointError, match=rf"^model_3\.pth could not be read back: .*{why}"):
        Checkpointer(torch.nn.Linear(1, 1), str(tmp_path), hook=Hook(value)).save("model_3")
    assert list(tmp_path.iterdir()) == []
