"""Preventing two runs from writing to the same OUTPUT_DIR."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from detectron2.utils import comm

from pwlu_det.checkpoint.atomic import remove_stale
from pwlu_det.errors import ConfigError

logger = logging.getLogger(f"detectron2.{__name__}")

NAME = "run.lock"
_held: set[str] = set()


@contextmanager
def lock_output_dir(folder: str) -> Iterator[None]:
    """Reserve a folder for the run to which this process belongs; all its processes must call this.

    Process 0 holds a lock on the file ``run.lock``, which ends with that process, however it ends. It is a
    POSIX record lock: these work on NFS, and data loader workers do not inherit them. On a file system
    without locks, a warning is logged. Reading and evaluation need no lock.

    Raises:
        ConfigError: another run has the lock, or ``run.lock`` is not a regular file.
    """
    path = os.path.join(os.path.realpath(folder), NAME)
    if path in _held:  # by a caller; closing the file a second time would give up the lock
        yield
        return
    file, problem = None, ""
    if comm.is_main_process():
        if os.path.exists(path) and not os.path.isfile(path):
            problem = f"cannot be used: {NAME} in it is not a regular file"
        else:
            file = open(path, "a+")  # noqa: SIM115
            problem = _lock(file)
    try:
        problem = comm.all_gather(problem)[0]
        if problem:
            raise ConfigError(f"OUTPUT_DIR {folder} {problem}; choose another one")
        _held.add(path)
        if comm.is_main_process():
            remove_stale(folder, r".+\.pth|last_checkpoint")
        yield
    finally:
        _held.discard(path)
        if file is not None:
            file.close()


def _lock(file: TextIO) -> str:
    """Lock a file; returns what is wrong if it is locked already, else ""."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.seek(0)
            return f"is in use by another run ({file.read(1000).strip() or 'unknown process'})"
        logger.warning(f"{file.name} cannot be locked ({error}): do not start a second run in this folder.")
        return ""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return ""
