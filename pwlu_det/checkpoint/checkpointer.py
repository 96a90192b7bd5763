"""Checkpoints that are always whole, and are read without running code from the file."""

from __future__ import annotations

import glob
import logging
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from pwlu_det.checkpoint.atomic import atomic_save, atomic_writer
from pwlu_det.checkpoint.plain import plain
from pwlu_det.checkpoint.reader import read_checkpoint
from pwlu_det.errors import CheckpointError, PwluDetError

logger = logging.getLogger(f"detectron2.{__name__}")


@dataclass
class Resumable:
    """The checkpoint that a run is resumed from."""

    file: str = ""
    """its path, or "" where there is none"""
    damages: dict[str, str] = field(default_factory=dict)
    """newer files, and what is wrong with them"""
    content: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """what :func:`read_checkpoint` has read; :meth:`take` gives it away"""

    def take(self) -> dict[str, Any]:
        """The content, which is not kept: it is as large as the model and the optimizer's state."""
        content, self.content = self.content, {}
        return content or read_checkpoint(self.file)


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which writes whole files only, and reads them by :func:`read_checkpoint`.

    Args:
        model, save_dir, checkpointables: as detectron2's.
        resumable: what :func:`find_resumable` has found in ``save_dir``, where that was done already.

    Attributes:
        incompatible: missing, unexpected and wrongly shaped keys of the last loading.
    """

    incompatible = None
    _resumes = False

    def __init__(
        self, model: nn.Module, save_dir: str = "", resumable: Resumable | None = None, **checkpointables: Any
    ):
        super().__init__(model, save_dir, **checkpointables)
        if resumable is not None:
            self.resumable = resumable

    def save(self, name: str, **extra: Any) -> None:
        """Write ``name``.pth so that whatever happens meanwhile, a file of that name is a whole one.

        Raises:
            CheckpointError: some state could not be read back, since it is not made of tensors and plain
                values.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: value.state_dict() for key, value in self.checkpointables.items()}
        file = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {file}")
        atomic_save(plain({"model": self.model.state_dict(), **state, **extra}, name), file)
        self.tag_last_checkpoint(os.path.basename(file))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_writer(os.path.join(self.save_dir, "last_checkpoint")) as f:
            f.write(last_filename_basename.encode())

    @cached_property
    def resumable(self) -> Resumable:
        """The checkpoint to resume from, as :func:`find_resumable` finds it at the first look."""
        return find_resumable(self.save_dir)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As detectron2's, but a damaged checkpoint is passed over, and one to resume has to fit the model.

        Raises:
            CheckpointError: it does not fit, or there is none to take.
        """
        self._resumes = resume and bool(self.resumable.file)
        if not self._resumes:
            return self.load(path, checkpointables=[])
        for damaged, why in self.resumable.damages.items():
            logger.warning(f"{damaged} cannot be resumed ({why}): taking {self.resumable.file} in its place")
        return self.load(self.resumable.file)

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
        resumed = self._resumes and filename == self.resumable.file
        return self.resumable.take() if resumed else read_checkpoint(filename)

    def _load_model(self, checkpoint: dict[str, Any]):
        self.incompatible = super()._load_model(checkpoint)
        unfit = [key for keys in self.incompatible for key in keys]
        if self._resumes and unfit:
            raise CheckpointError(
                f"--resume: {self.resumable.file} is not of this model: {len(unfit)} tensors are missing, of "
                f"another shape or too many, the first is {unfit[0]}"
            )
        return self.incompatible


def find_resumable(folder: str) -> Resumable:
    """The checkpoint that ``folder/last_checkpoint`` names or, where that is damaged, the newest whole one.

    Raises:
        CheckpointError: there are some, but none is whole, or the processes do not see the same files.
    """
    found = _find_resumable(folder)
    if any(other != found.file for other in comm.all_gather(found.file)):
        raise CheckpointError(
            f"OUTPUT_DIR {folder}: the processes do not see the same checkpoints there. To resume, all "
            "machines need it on a file system that they share."
        )
    return found


def _find_resumable(folder: str) -> Resumable:
    tag = os.path.join(folder, "last_checkpoint")
    if not os.path.isfile(tag):
        return Resumable()
    with open(tag, encoding="utf-8", errors="replace") as f:
        last = os.path.join(folder, f.read().strip())
    others = glob.glob(os.path.join(glob.escape(folder), "*.pth"))
    others = sorted((o for o in others if o != last), key=os.path.getmtime, reverse=True)
    damages = {}
    for file in (last, *others):
        try:
            return Resumable(file, damages, _read_resumable(file))
        except CheckpointError as error:
            damages[file] = str(error)
    listed = "".join(f"\n  {file}: {why}" for file, why in damages.items())
    raise CheckpointError(
        f"--resume: OUTPUT_DIR {folder} has no whole checkpoint; without it the run starts anew.{listed}"
    )


def _read_resumable(file: str) -> dict[str, Any]:
    content = read_checkpoint(file)
    lacking = {"model", "trainer", "iteration"} - set(content)
    if lacking:
        raise CheckpointError(f"it is not from a training: it has no {' and no '.join(sorted(lacking))}")
    return content
