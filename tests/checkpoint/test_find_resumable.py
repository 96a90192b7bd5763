"""Which checkpoint of a folder is resumed."""

import os

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d

from pwlu_det import CheckpointError
from pwlu_det.checkpoint.atomic import atomic_save
from pwlu_det.checkpoint.checkpointer import Checkpointer, find_resumable, has_resumable


def write(folder, name, iteration, changes=()):
    content = {"model": {"w": torch.ones(10)}, "trainer": {"iteration": iteration}, "iteration": iteration}
    atomic_save({**content, **dict(changes)}, str(folder / name))


@pytest.fixture
def run(tmp_path):
    """A run of 15 iterations, whose checkpoints have times in the reverse order."""
    for age, (name, iteration) in enumerate(
        [("model_0000004.pth", 4), ("model_0000009.pth", 9), ("model_final.pth", 14)]
    ):
        write(tmp_path, name, iteration)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    return tmp_path


def found(folder):
    assert has_resumable(str(folder))
    resumable = find_resumable(str(folder))
    return os.path.relpath(resumable.file, folder), resumable


def test_named_checkpoint_is_used_even_if_others_are_newer(run):
    (run / "last_checkpoint").write_text("model_0000004.pth\n")
    name, resumable = found(run)
    assert name == "model_0000004.pth" and resumable.damages == {}


TAGS = {
    "missing": None,
    "empty": "",
    "of blanks": " \n",
    "a file that is gone": "model_0000019.pth",
    "an absolute path": "{other}/model_0000099.pth",
    "a relative path": "../{name}/model_0000099.pth",
    "this folder": ".",
    "the parent folder": "..",
    "not text": b"\xff\xfe\x00",
    "a long text": "x" * 10**6,
}


@pytest.mark.parametrize("tag", TAGS)
def test_newest_by_iteration_if_last_checkpoint_is_of_no_use(run, tmp_path_factory, tag, caplog):
    other = tmp_path_factory.mktemp("other")
    write(other, "model_0000099.pth", 99)
    text = TAGS[tag]
    if isinstance(text, bytes):
        (run / "last_checkpoint").write_bytes(text)
    elif text is not None:
        (run / "last_checkpoint").write_text(text.format(other=other, name=other.name))
    assert found(run)[0] == "model_final.pth"
    (run / "model_final.pth").write_bytes((run / "model_final.pth").read_bytes()[:-50])
    assert found(run)[0] == "model_0000009.pth"
    with caplog.at_level("WARNING"):
        Checkpointer(torch.nn.ParameterDict({"w": torch.zeros(10)}), str(run)).resume_or_load("", resume=True)
    if tag != "a file that is gone":
        assert f"{run / 'last_checkpoint'} cannot be resumed (" in caplog.text
    assert f"{run / 'model_final.pth'} cannot be resumed (" in caplog.text


def test_iteration_is_that_in_the_file_and_not_in_its_name(run):
    os.rename(run / "model_0000004.pth", run / "model_0000099.pth")
    assert found(run)[0] == "model_final.pth"


def test_files_that_no_run_has_written_are_ignored(tmp_path):
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "backbone.pth")
    (tmp_path / "R-50.pkl").write_bytes(b"x")
    assert not has_resumable(str(tmp_path)) and find_resumable(str(tmp_path)).file == ""
    write(tmp_path, "best.pth", 3)
    assert found(tmp_path)[0] == "best.pth"


def test_special_files_are_not_opened(run):
    """Opening a named pipe would wait for a writer."""
    os.rename(run / "model_final.pth", run / "final")
    os.mkfifo(run / "model_final.pth")
    os.mkfifo(run / "last_checkpoint")
    os.mkdir(run / "model_0000019.pth")
    name, resumable = found(run)
    assert name == "model_0000009.pth"
    assert "it is not a regular file" in resumable.damages[str(run / "model_final.pth")]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"iteration": -1}, "its iteration is -1; it must be an integer from 0 to"),
        ({"iteration": 10**20}, "its iteration is 100000000000000000000; it must"),
        ({"iteration": "x"}, "its iteration is 'x'; it must"),
        ({"iteration": 5.0}, "its iteration is 5.0; it must"),
        ({"iteration": torch.ones(1)}, "its trainer's state is not that of its iteration, None"),
        ({"trainer": {"iteration": 7}}, "its trainer's state is not that of its iteration, 14"),
        ({"trainer": []}, "its trainer's state is not that of its iteration, 14"),
    ],
)
def test_iteration_out_of_range(tmp_path, changes, message):
    write(tmp_path, "model_final.pth", 14, changes)
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(CheckpointError, match="has no intact checkpoint") as error:
        find_resumable(str(tmp_path))
    assert message in str(error.value)


def test_weights_of_which_nothing_fits_are_an_error(tmp_path):
    model, path = torch.nn.Linear(2, 2), str(tmp_path / "w.pth")
    for state in ({"other": torch.ones(2)}, {"weight": torch.ones(3)}, {"model.weight": torch.ones(2, 2)}):
        torch.save(state, path)
        with pytest.raises(
            CheckpointError, match=r"w\.pth does not fit the model: none of its tensors .* bias"
        ):
            Checkpointer(model).load(path)
    torch.save({"bias": torch.ones(2)}, path)
    Checkpointer(model).load(path)
    assert model.bias.tolist() == [1, 1]


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, FrozenBatchNorm2d])
def test_statistics_that_norms_fill_in_do_not_count_as_fitting(tmp_path, norm):
    torch.save({"other": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="none of its tensors"):
        Checkpointer(torch.nn.Sequential(norm(2))).load(str(tmp_path / "w.pth"))
