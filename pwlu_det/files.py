"""Files that are whole, or not there."""

from __future__ import annotations

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
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # before the name: after a power cut the name must not be there alone
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    _sync_folder(os.path.dirname(path) or ".")


def atomic_save(content: Any, path: str) -> None:
    """``torch.save`` that is atomic."""
    with atomic_writer(path) as f:
        torch.save(content, f)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
