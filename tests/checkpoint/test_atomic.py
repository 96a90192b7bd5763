"""Files are written completely or not at all, even if the disk is full."""

import errno
import fcntl
import multiprocessing
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


def test_contents_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """After a power failure, the name must not lead to an empty file, nor the new file be forgotten."""
    events, synchronize, rename = [], os.fsync, os.replace

    def fsync(descriptor):
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_size))
        synchronize(descriptor)

    def replace(source, target):
        events.append(("rename", source, target))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with atomic_writer(str(tmp_path / "file")) as f:
        f.write(b"content")
    synced, renamed, folder_synced = events
    assert synced == ("sync", f.name, 7)
    assert renamed == ("rename", f.name, str(tmp_path / "file"))
    assert folder_synced[:2] == ("sync", str(tmp_path))


# --- several writers of one file ------------------------------------------------------------------


def write_often(path, mark):
    for _ in range(15):
        with atomic_writer(str(path)) as f:
            for _ in range(50):
                f.write(mark * 1000)
                f.flush()


def test_several_writers_of_one_file(tmp_path):
    """At each moment, the file is whole and by one of its writers."""
    path = tmp_path / "file"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_often, args=(path, mark)) for mark in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    contents = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            contents.add(path.read_bytes())
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert 2 <= len(contents) <= 3
    assert all(len(content) == 50_000 and len(set(content)) == 1 for content in contents)
    assert os.listdir(tmp_path) == ["file"]


def test_files_of_dead_writers_are_removed_and_those_of_living_ones_kept(tmp_path):
    path = str(tmp_path / "file")
    dead = tmp_path / "file.0123abcd.tmp"
    others = {"file2.0123abcd.tmp", "file.0123abcd.tmp2", "file.tmp", "file.0123abcg.tmp"}
    for name in (dead.name, *others):
        (tmp_path / name).write_bytes(b"x")
    with atomic_writer(path) as first:
        assert not dead.exists()
        with atomic_writer(path) as second:
            assert os.path.exists(first.name) and first.name != second.name
            second.write(b"second")
        first.write(b"first")
    assert set(os.listdir(tmp_path)) == {"file", *others}
    assert (tmp_path / "file").read_bytes() == b"first"


def test_writer_whose_new_file_was_taken_for_a_stale_one_tries_again(tmp_path, monkeypatch):
    lock, removed = fcntl.flock, []

    def remove_first(file, how):
        if not removed and how == fcntl.LOCK_EX:
            removed.append(file.name)
            os.remove(file.name)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with atomic_writer(str(tmp_path / "file")) as f:
        f.write(b"x")
    assert removed and os.listdir(tmp_path) == ["file"]


def test_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "file.0123abcd.tmp").write_bytes(b"x")
    with atomic_writer(str(tmp_path / "file")) as f:
        f.write(b"x")
    assert set(os.listdir(tmp_path)) == {"file", "file.0123abcd.tmp"}  # its writer may be alive


def test_permissions_are_those_of_a_new_file(tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    atomic_save(SMALL, str(tmp_path / "file"))
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("first", [OSError(28, "No space left on device"), MemoryError("of the cause")])
def test_the_cause_of_a_failed_save_is_not_lost(tmp_path, monkeypatch, first):
    def save(content, f):
        try:
            try:
                raise first
            finally:
                raise KeyError("cleaning up")
        finally:
            raise RuntimeError("unexpected pos")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises((OSError, RuntimeError)) as error:
        atomic_save(SMALL, str(tmp_path / "file"))
    if isinstance(first, OSError):
        assert str(error.value) == f"[Errno 28] No space left on device: '{tmp_path / 'file'}'"
    else:
        assert error.value.__context__.__context__ is first and not error.value.__suppress_context__
