"""Messages for lost processes and workers; tests/reliability has real ones."""

import os
import signal

import pytest
import torch
from torch.multiprocessing import ProcessExitedException
from torch.utils.data import DataLoader, Dataset

from pwlu_det import DatasetError
from pwlu_det.engine.failures import explain, explain_exit


class Images(Dataset):
    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 2

    def __getitem__(self, i):
        self.fail()
        return torch.zeros(1)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def raise_fault():
    raise DatasetError("image x.png cannot be used: no image")


@pytest.mark.parametrize("fail", [kill, lambda: os._exit(1)], ids=["killed", "ended"])
def test_lost_worker(fail):
    with pytest.raises(RuntimeError) as error:
        list(DataLoader(Images(fail), num_workers=1))
    message = explain(error.value)
    assert message.startswith("a data loader worker was lost (DataLoader worker (pid")
    assert "NUM_WORKERS" in message and "--resume" in message and "\n" not in message


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_lost_worker_whose_connection_fails_first(error):
    assert explain(error).startswith("a data loader worker was lost (")
    assert "()" not in explain(error)


def test_fault_that_a_worker_has_found():
    """Without the traceback that torch adds to the message."""
    with pytest.raises(DatasetError) as error:
        list(DataLoader(Images(raise_fault), num_workers=1))
    assert "Traceback" in str(error.value)
    assert explain(error.value) == "image x.png cannot be used: no image"


def test_other_errors():
    assert (
        explain(OSError(28, "No space left on device", "a.pth"))
        == "[Errno 28] No space left on device: 'a.pth'"
    )
    assert explain(RuntimeError("x")) is None and explain(KeyError("x")) is None


def test_exit():
    killed = ProcessExitedException("", error_index=1, error_pid=5, exit_code=-9, signal_name="SIGKILL")
    message, status = explain_exit(killed, first_rank=4)
    assert message.startswith(
        "process 5 was killed by SIGKILL, which the system sends when the memory is full"
    )
    assert status == 137
    crashed = ProcessExitedException("", error_index=0, error_pid=5, exit_code=-11, signal_name="SIGSEGV")
    assert explain_exit(crashed, first_rank=0) == (
        "process 0 was killed by SIGSEGV. Use --resume to continue from the last checkpoint.",
        139,
    )
    ended = ProcessExitedException("", error_index=0, error_pid=5, exit_code=143)
    assert explain_exit(ended, first_rank=0) == ("", 143)
