"""Two runs do not write to the same OUTPUT_DIR."""

import fcntl
import multiprocessing
import os
import signal

import pytest

from pwlu_det import ConfigError
from pwlu_det.engine import run_lock
from pwlu_det.engine.run_lock import lock_output_dir

FORK = multiprocessing.get_context("fork")


def hold(folder, connection):
    with lock_output_dir(str(folder)):
        connection.send("locked")
        connection.recv()


@pytest.fixture
def holder(tmp_path):
    """Another process that has locked tmp_path."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=hold, args=(tmp_path, there))
    process.start()
    assert here.recv() == "locked"
    yield process
    process.kill()
    process.join()


def test_second_run_is_refused_while_the_first_lives(tmp_path, holder):
    message = rf"OUTPUT_DIR .* in use by another run \(process {holder.pid} on "
    with pytest.raises(ConfigError, match=message), lock_output_dir(str(tmp_path)):
        raise AssertionError("not reached")
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with lock_output_dir(str(tmp_path)):
        pass


def test_the_same_folder_by_another_name(tmp_path, holder):
    link = tmp_path.parent / f"{tmp_path.name}_link"
    link.symlink_to(tmp_path)
    with pytest.raises(ConfigError), lock_output_dir(str(link)):
        raise AssertionError("not reached")


def test_lock_is_held_until_the_outer_block_ends(tmp_path):
    """train_net locks the folder, and so does the trainer."""

    with lock_output_dir(str(tmp_path)):
        with lock_output_dir(str(tmp_path)):
            pass
        process = FORK.Process(target=try_in_a_new_process, args=(tmp_path,))
        process.start()
        process.join()
        assert process.exitcode == 3
    process = FORK.Process(target=try_in_a_new_process, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0


def try_in_a_new_process(folder):
    run_lock._held.clear()  # inherited from the parent by fork
    try:
        with lock_output_dir(str(folder)):
            pass
    except ConfigError:
        os._exit(3)


def wait(connection):
    connection.recv()


def test_a_worker_that_survives_its_run_does_not_hold_the_lock(tmp_path):
    """Data loader workers are forked from the run, and notice its end a few seconds later."""
    with lock_output_dir(str(tmp_path)):
        here, there = FORK.Pipe()
        worker = FORK.Process(target=wait, args=(there,), daemon=True)
        worker.start()
    process = FORK.Process(target=try_in_a_new_process, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0 and worker.is_alive()
    here.send(None)
    worker.join()


def test_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with lock_output_dir(str(tmp_path)):
        assert "cannot be locked" in caplog.text


def test_start_of_a_run_removes_the_temporary_files_of_dead_ones(tmp_path):
    for name in ("model_0000004.pth.0123abcd.tmp", "last_checkpoint.0123abcd.tmp", "mine.0123abcd.tmp"):
        (tmp_path / name).write_bytes(b"x")
    with lock_output_dir(str(tmp_path)):
        assert sorted(os.listdir(tmp_path)) == ["mine.0123abcd.tmp", "run.lock"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_lock_that_is_not_a_regular_file(tmp_path, make):
    make(tmp_path / "run.lock")
    with (
        pytest.raises(ConfigError, match=r"cannot be used: run\.lock in it is not a regular file"),
        lock_output_dir(str(tmp_path)),
    ):
        pass
