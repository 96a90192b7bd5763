"""Images that cannot be read."""

import os
import socket

import pytest
from PIL import Image

from pwlu_det import DatasetError
from pwlu_det.data.mapper import Mapper


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.path.relpath(path))  # the length of a socket's path is limited


SPECIAL = {
    "a named pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a link to a device": lambda path: os.symlink("/dev/zero", path),
    "a socket": make_socket,
}


@pytest.mark.parametrize("what", SPECIAL)
@pytest.mark.parametrize("key", ["file_name", "sem_seg_file_name"])
def test_special_files_are_not_opened(cfg, tmp_path, what, key, monkeypatch):
    """Reading a named pipe or a device would never end."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (3, 3)).save(tmp_path / "image.png")
    SPECIAL[what](tmp_path / "special")
    entry = {"file_name": str(tmp_path / "image.png"), "height": 3, "width": 3, "annotations": []}
    with pytest.raises(DatasetError, match=r"image .* cannot be used: .*special is not a regular file"):
        Mapper(cfg, is_train=True)({**entry, key: str(tmp_path / "special")})


def test_error_without_a_message_is_named(cfg, tmp_path, monkeypatch):
    """A worker that cannot allocate memory."""

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("detectron2.data.detection_utils.read_image", fail)
    with pytest.raises(DatasetError, match=r"image x\.png cannot be used: MemoryError$"):
        Mapper(cfg, is_train=True)({"file_name": "x.png", "height": 3, "width": 3})


def test_image_that_is_much_larger_than_its_file(cfg, tmp_path):
    """250 million pixels in 250 kB."""
    Image.new("1", (25_000, 10_000)).save(tmp_path / "bomb.png")
    with pytest.raises(
        DatasetError, match=r"bomb\.png cannot be used: Image size \(250000000 pixels\) exceeds"
    ):
        Mapper(cfg, is_train=True)(
            {"file_name": str(tmp_path / "bomb.png"), "height": 10_000, "width": 25_000}
        )
