"""Files are written completely or not at all, even if the disk is full."""

import os
import resource
import signal
from contextlib import contextmanager

import pytest
import torch

from pwlu_det.checkpoint.atomic import atomic_save, atomic_writer

LARGE = {"model": {"a": torch.zeros(300_000)}}
SMALL = {"model": {"a": torch.ones(1)}}


@contextmanager
def full_disk(limit: int = 100_000):
    """Simulate a full disk: no file can grow beyond the limit."""
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "ä file.pth"
    atomic_save(SMALL, str(path))
    with full_disk(), pytest.raises(OSError, match=r"File too large.*ä file\.pth"):
        atomic_save(LARGE, str(path))
    assert os.listdir(tmp_path) == [path.name]
    assert torch.load(path, weights_only=True)["model"]["a"] == 1


def test_full_disk_leaves_no_new_file(tmp_path):
    with full_disk(), pytest.raises(OSError, match="File too large"):
        atomic_save(LARGE, str(tmp_path / "new.pth"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "path", ["/dev/full", "/dev/null", "/proc/new", "{}", "{}/none/new", "{}/" + "x" * 300]
)
def test_unwritable_path_is_an_error(path, tmp_path):
    with pytest.raises(OSError, match="/"):
        atomic_save(SMALL, path.format(tmp_path))
    assert not os.path.isfile("/dev/null")  # it would be one if the device had been replaced
    assert os.listdir(tmp_path) == []


def test_symbolic_link_is_kept(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link.pth", tmp_path / "elsewhere" / "target.pth"
    link.symlink_to(target)
    atomic_save(SMALL, str(link))
    assert link.is_symlink() and torch.load(target, weights_only=True)["model"]["a"] == 1


def test_error_in_the_block_is_propagated(tmp_path):
    with pytest.raises(KeyError), atomic_writer(str(tmp_path / "x")) as f:
        f.write(b"half")
        raise KeyError
    assert os.listdir(tmp_path) == []
