"""Files that are whole, or not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import torch


@contextmanager
def atomic_writer(path: str) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the block ends, and only then.

    Where the block or the disk fails, the old file stays as it was. A process that is killed can leave
    ``path``.tmp behind, which the next writer overwrites.

    Raises:
        OSError: the file cannot be written.
    """
    path = os.path.realpath(path)  # of a link, what it leads to is replaced
    if os.path.exists(path) and not os.path.isfile(path):  # a folder; a device would even be replaced
        raise OSError(errno.EINVAL, "Not an ordinary file", path)
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # before the name: after a power cut the name must not be there alone
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # of a full disk
            error.filename = path
        if os.path.isfile(temporary):
            os.remove(temporary)
        raise
    _sync_folder(os.path.dirname(path))


def atomic_save(content: Any, path: str) -> None:
    """``torch.save`` that is atomic.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_writer(path) as f:
        try:
            torch.save(content, f)
        except RuntimeError as error:  # of the archive that cannot be finished, after what the disk has said
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
