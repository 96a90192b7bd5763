"""Checkpoints that are always whole, and are read without running code from the file."""

from __future__ import annotations

import glob
import logging
import os
from functools import cached_property
from typing import Any, NamedTuple

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

from pwlu_det.checkpoint.atomic import atomic_save, atomic_writer
from pwlu_det.checkpoint.reader import read_checkpoint
from pwlu_det.errors import CheckpointError, PwluDetError

logger = logging.getLogger(f"detectron2.{__name__}")


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which writes whole files only, and reads them by :func:`read_checkpoint`.

    Attributes:
        incompatible: missing, unexpected and wrongly shaped keys of the last loading.
    """

    incompatible = None
    _resumes = False

    def save(self, name: str, **extra: Any) -> None:
        """Write ``name``.pth so that whatever happens meanwhile, a file of that name is a whole one."""
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: value.state_dict() for key, value in self.checkpointables.items()}
        file = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {file}")
        atomic_save({"model": self.model.state_dict(), **state, **extra}, file)
        self.tag_last_checkpoint(os.path.basename(file))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_writer(os.path.join(self.save_dir, "last_checkpoint")) as f:
            f.write(last_filename_basename.encode())

    @cached_property
    def resumable(self) -> str:
        """The file to resume from, as it was at the first look: see :func:`find_resumable`.

        Raises:
            CheckpointError: all are damaged, or the processes do not see the same files.
        """
        file, damages = find_resumable(self.save_dir)
        for damaged, why in damages.items():
            logger.warning(f"{damaged} cannot be resumed ({why}): taking {file} in its place")
        if any(other != file for other in comm.all_gather(file)):
            raise CheckpointError(
                f"OUTPUT_DIR {self.save_dir}: the processes do not see the same checkpoints there. To "
                "resume, all machines need it on a file system that they share."
            )
        return file

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As detectron2's, but a damaged checkpoint is passed over, and one to resume has to fit the model.

        Raises:
            CheckpointError: it does not fit, or there is none to take.
        """
        self._resumes = resume and bool(self.resumable)
        return self.load(self.resumable) if self._resumes else self.load(path, checkpointables=[])

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As detectron2's, which also takes URLs and ``?matching_heuristics=True``.

        Raises:
            CheckpointError: the file cannot be fetched or read, or does not fit what it is loaded into.
        """
        try:
            return super().load(path, *args, **kwargs)
        except PwluDetError:
            raise
        except Exception as error:  # the file is right, so that only what it holds can be wrong
            raise CheckpointError(f"{path} cannot be loaded: {error}") from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".pkl", ".pyth")):  # detectron2 would run what is in these
            return read_checkpoint(filename)
        return super()._load_file(filename)  # by _torch_load

    def _torch_load(self, filename: str) -> dict[str, Any]:
        return read_checkpoint(filename)

    def _load_model(self, checkpoint: dict[str, Any]):
        self.incompatible = super()._load_model(checkpoint)
        unfit = [key for keys in self.incompatible for key in keys]
        if self._resumes and unfit:
            raise CheckpointError(
                f"--resume: {self.resumable} is not of this model: {len(unfit)} tensors are missing, of "
                f"another shape or too many, the first is {unfit[0]}"
            )
        return self.incompatible


class Resumable(NamedTuple):
    file: str
    """the checkpoint, or "" where there is none"""
    damages: dict[str, str]
    """newer files, and what is wrong with them"""


def find_resumable(folder: str) -> Resumable:
    """The checkpoint that ``folder/last_checkpoint`` names or, where that is damaged, the newest whole one.

    Raises:
        CheckpointError: there are some, but none is whole.
    """
    tag = os.path.join(folder, "last_checkpoint")
    if not os.path.isfile(tag):
        return Resumable("", {})
    with open(tag, encoding="utf-8", errors="replace") as f:
        last = os.path.join(folder, f.read().strip())
    others = glob.glob(os.path.join(glob.escape(folder), "*.pth"))
    others = sorted((o for o in others if o != last), key=os.path.getmtime, reverse=True)
    damages = {}
    for file in (last, *others):
        why = _find_damage(file)
        if not why:
            return Resumable(file, damages)
        damages[file] = why
    listed = "".join(f"\n  {file}: {why}" for file, why in damages.items())
    raise CheckpointError(
        f"--resume: OUTPUT_DIR {folder} has no whole checkpoint; without it the run starts anew.{listed}"
    )


def _find_damage(file: str) -> str:
    """Why a run cannot be resumed from a file, or ""."""
    try:
        state = read_checkpoint(file)
    except CheckpointError as error:
        return str(error)
    lacking = {"model", "trainer", "iteration"} - set(state)
    return f"it is of no training: it has no {' and no '.join(sorted(lacking))}" if lacking else ""
