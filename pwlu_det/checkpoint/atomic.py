"""Write files atomically: a file is either complete or absent."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import torch


@contextmanager
def atomic_writer(path: str) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``path`` when the block ends.

    If the block or the disk fails, the old file is unchanged. If several processes write the same file, it is
    always whole and that of one of them. The temporary file is in the same folder and called ``path.*.tmp``;
    those of processes that were killed are removed by the next writer.

    Raises:
        OSError: the file cannot be written.
    """
    path = os.path.realpath(path)  # replace a link's target, not the link
    if os.path.exists(path) and not os.path.isfile(path):  # os.replace would replace even a device
        raise OSError(errno.EINVAL, "Not a regular file", path)
    remove_stale(os.path.dirname(path), re.escape(os.path.basename(path)))
    f = _create(path)
    try:
        with f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # before renaming: a power failure must not leave an empty file at path
            os.replace(f.name, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # the disk is full
            error.filename = path
        with suppress(FileNotFoundError):
            os.remove(f.name)
        raise
    _sync_folder(os.path.dirname(path))


def remove_stale(folder: str, name: str) -> None:
    """Remove the temporary files that killed writers have left: those that no process has locked.

    Args:
        folder: the folder of the files that were being written.
        name: a regular expression for their names.
    """
    is_temporary = re.compile(rf"(?:{name})\.[0-9a-f]{{8}}\.tmp").fullmatch
    entries: list[str] = []
    with suppress(OSError):  # the folder may not be readable
        entries = os.listdir(folder)
    for entry in filter(is_temporary, entries):
        with suppress(OSError), open(os.path.join(folder, entry), "r+b") as f:
            # It fails if the writer is alive, or if the file system does not support locks.
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.remove(f.name)


def _create(path: str) -> BinaryIO:
    """Create a temporary file, and lock it until it is closed or this process ends."""
    while True:
        try:
            f = open(f"{path}.{secrets.token_hex(4)}.tmp", "xb")  # noqa: SIM115
        except OSError as error:
            error.filename = path
            raise
        try:
            fcntl.flock(f, fcntl.LOCK_EX)
        except OSError:  # not supported by the file system: then no file is removed as stale
            return f
        if os.path.exists(f.name):
            return f
        f.close()  # another writer has taken it for a stale one before it was locked


def atomic_save(content: Any, path: str, check: Callable[[str], None] = lambda path: None) -> None:
    """Like ``torch.save``, but atomic.

    Args:
        content: as in ``torch.save``.
        path: the file to write.
        check: called with the name of the temporary file; if it raises, the old file is unchanged.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_writer(path) as f:
        try:
            torch.save(content, f)
        except RuntimeError as error:  # torch cannot finish the archive; the first error is in its context
            cause = _first_os_error(error)
            if cause is None:
                raise
            raise cause from None
        f.flush()
        check(f.name)


def _first_os_error(error: BaseException | None) -> OSError | None:
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return next((cause for cause in reversed(causes) if isinstance(cause, OSError)), None)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
