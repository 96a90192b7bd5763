"""Write files atomically: a file is either complete or absent."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import torch


@contextmanager
def atomic_writer(path: str) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces ``path`` when the block ends.

    If the block or the disk fails, the old file is unchanged. A process that is killed may leave ``path``.tmp
    behind, which the next writer overwrites.

    Raises:
        OSError: the file cannot be written.
    """
    path = os.path.realpath(path)  # replace a link's target, not the link
    if os.path.exists(path) and not os.path.isfile(path):  # os.replace would replace even a device
        raise OSError(errno.EINVAL, "Not a regular file", path)
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # before renaming: a power failure must not leave an empty file at path
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # the disk is full
            error.filename = path
        if os.path.isfile(temporary):
            os.remove(temporary)
        raise
    _sync_folder(os.path.dirname(path))


def atomic_save(content: Any, path: str) -> None:
    """Like ``torch.save``, but atomic.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_writer(path) as f:
        try:
            torch.save(content, f)
        except RuntimeError as error:  # torch cannot finish the archive; the disk's error is its context
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
