"""Checkpoints that are always complete, and are read without running code from the file."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pickle import UnpicklingError
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from pwlu_det.activations import ACTIVATIONS
from pwlu_det.checkpoint.atomic import atomic_save, atomic_writer
from pwlu_det.checkpoint.plain import plain
from pwlu_det.checkpoint.reader import read_checkpoint, read_iteration
from pwlu_det.checkpoint.tensor_file import check_readable
from pwlu_det.errors import CheckpointError, PwluDetError, describe

# Buffers that models or norms fill in if a file lacks them.
_FILLED_IN = ("running_mean", "running_var", "num_batches_tracked", "pixel_mean", "pixel_std")

logger = logging.getLogger(f"detectron2.{__name__}")


@dataclass
class Resumable:
    """The checkpoint from which a run is resumed."""

    file: str = ""
    """its path, or "" if there is none"""
    damages: dict[str, str] = field(default_factory=dict)
    """newer files that cannot be resumed, and the reasons"""
    content: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """as returned by :func:`read_checkpoint`, until :meth:`take` is called"""

    def take(self) -> dict[str, Any]:
        """Return the content without keeping it: it is as large as the model and the optimizer's state."""
        content, self.content = self.content, {}
        return content or read_checkpoint(self.file)


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, but it writes atomically and reads with :func:`read_checkpoint`.

    Args:
        model, save_dir, checkpointables: as in detectron2.
        resumable: the result of :func:`find_resumable` for ``save_dir``, if it has already been called.

    Attributes:
        incompatible: the missing, unexpected and wrongly shaped keys found by the last load.
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
        """Write ``name``.pth atomically: a file with that name is always complete.

        Raises:
            CheckpointError: a part of the state could not be read back, for example because of its type, see
                :func:`plain`.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: value.state_dict() for key, value in self.checkpointables.items()}
        file = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {file}")
        try:
            content = plain({"model": self.model.state_dict(), **state, **extra}, name)
            atomic_save(content, file, check_readable)
        except (UnpicklingError, RecursionError) as error:
            raise CheckpointError(f"{name}.pth could not be read back: {describe(error)}") from error
        self.tag_last_checkpoint(os.path.basename(file))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_writer(os.path.join(self.save_dir, "last_checkpoint")) as f:
            f.write(last_filename_basename.encode())

    @cached_property
    def resumable(self) -> Resumable:
        """The checkpoint to resume from; :func:`find_resumable` is called once, on first use."""
        return find_resumable(self.save_dir)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As in detectron2, but damaged checkpoints are skipped, and a resumed one must match the model.

        Raises:
            CheckpointError: the checkpoint cannot be read or does not match the model, or all are damaged.
        """
        self._resumes = resume and bool(self.resumable.file)
        if not self._resumes:
            return self.load(path, checkpointables=[])
        for damaged, why in self.resumable.damages.items():
            logger.warning(f"{damaged} cannot be resumed ({why}): using {self.resumable.file} instead")
        return self.load(self.resumable.file)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in detectron2, which also takes URLs and ``?matching_heuristics=True``.

        Raises:
            CheckpointError: the file cannot be downloaded or read, or it does not match the model.
        """
        try:
            rest = super().load(path, *args, **kwargs)
        except PwluDetError:
            raise
        except Exception as error:  # the file was read, so its content must be wrong
            raise CheckpointError(f"{path} cannot be loaded: {describe(error)}") from error
        keys = {key for key in self.model.state_dict() if not key.endswith(_FILLED_IN)}
        if path and keys and keys <= set(self.incompatible.missing_keys):
            raise CheckpointError(
                f"{path} does not fit the model: none of its tensors has the name and the shape of any of "
                f"those in the model, such as {min(keys)}"
            )
        if isinstance(rest.get("input"), dict):  # of an exported backbone
            _warn_of_input(rest["input"], describe_input(self.model), path)
        _warn_of_activation(rest.get("activation"), self.model, path)
        return rest

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".pkl", ".pyth")):  # detectron2 would unpickle these, running any code in them
            return read_checkpoint(filename)
        return super()._load_file(filename)  # calls _torch_load

    def _torch_load(self, filename: str) -> dict[str, Any]:
        resumed = self._resumes and filename == self.resumable.file
        return self.resumable.take() if resumed else read_checkpoint(filename)

    def _load_model(self, checkpoint: dict[str, Any]):
        self.incompatible = super()._load_model(checkpoint)
        unfit = [*self.incompatible.missing_keys, *self.incompatible.unexpected_keys]
        if self._resumes and unfit:
            raise CheckpointError(
                f"--resume: {self.resumable.file} does not match the model: {len(unfit)} tensors are "
                f"missing, unexpected or of the wrong shape; the first is {unfit[0]}"
            )
        return self.incompatible


def has_resumable(folder: str) -> bool:
    """Whether :func:`find_resumable` would find a checkpoint, or damaged ones only."""
    return any(True for _ in _candidates(folder, {}))


def find_resumable(folder: str) -> Resumable:
    """Find the checkpoint that ``folder/last_checkpoint`` names.

    If that file or the checkpoint is missing or damaged, find the intact one with the highest iteration.

    Raises:
        CheckpointError: all checkpoints are damaged, or the processes do not see the same files.
    """
    found = _find_resumable(folder)
    if any(other != found.file for other in comm.all_gather(found.file)):
        raise CheckpointError(
            f"OUTPUT_DIR {folder}: the processes do not see the same checkpoints in it. To resume, it must "
            "be on a file system that all machines share."
        )
    return found


def _find_resumable(folder: str) -> Resumable:
    damages: dict[str, str] = {}
    for file in _candidates(folder, damages):
        try:
            return Resumable(file, damages, _read_resumable(file))
        except CheckpointError as error:
            damages[file] = str(error)
    if list(damages.values()) == [_ABSENT]:
        return Resumable()
    listed = "".join(f"\n  {file}: {why}" for file, why in damages.items())
    raise CheckpointError(
        f"--resume: OUTPUT_DIR {folder} has no intact checkpoint; omit --resume to start over.{listed}"
    )


_ABSENT = "it does not exist"


def _candidates(folder: str, damages: dict[str, str]) -> Iterator[str]:
    """The files to try, best first. Files that are damaged obviously are added to ``damages``."""
    tag = os.path.join(folder, "last_checkpoint")
    last = _read_tag(tag)
    if re.fullmatch(r"[^/\0]{1,255}", last) and last.strip("."):
        yield os.path.join(folder, last)
    else:
        why = f"its content is {last[:100]!r}; it must be the name of a file in the same folder"
        damages[tag] = why if os.path.lexists(tag) else _ABSENT
    iterations = {}
    for file in glob.glob(os.path.join(glob.escape(folder), "*.pth")):
        try:
            iteration = read_iteration(file)
        except CheckpointError as error:
            damages.setdefault(file, str(error))
        else:
            if iteration is not None and os.path.basename(file) != last:
                iterations[file] = iteration
    # Not by time, which copying a folder changes. Of the same iteration, model_final is after model_0000059.
    yield from sorted(iterations, key=lambda file: (iterations[file], file), reverse=True)


def _read_tag(tag: str) -> str:
    if not os.path.isfile(tag):
        return ""
    with open(tag, encoding="utf-8", errors="replace") as f:
        return f.read(10_000).strip()


def _read_resumable(file: str) -> dict[str, Any]:
    iteration = read_iteration(file)
    content = read_checkpoint(file)
    lacking = {"model", "trainer", "iteration"} - set(content)
    if lacking:
        raise CheckpointError(
            f"it is not a training checkpoint: it has no {' and no '.join(sorted(lacking))}"
        )
    trainer = content["trainer"]
    if iteration is None or not isinstance(trainer, dict) or trainer.get("iteration") != iteration:
        raise CheckpointError(f"its trainer's state is not that of its iteration, {iteration}")
    return content


def describe_input(model: nn.Module) -> dict[str, Any]:
    """The input format and the pixel statistics of one of detectron2's models, as config keys and values."""
    statistics = {
        f"MODEL.{name.upper()}": getattr(model, name).flatten().tolist()
        for name in ("pixel_mean", "pixel_std")
        if hasattr(model, name)
    }
    return {"INPUT.FORMAT": getattr(model, "input_format", None), **statistics}


def _warn_of_activation(trained: Any, model: nn.Module, path: str) -> None:
    names = {cls: name for name, cls in ACTIVATIONS.items()}
    own = {names[type(module)] for module in model.modules() if type(module) in names} - {"relu"}
    if isinstance(trained, str) and own and own != {trained}:
        logger.warning(
            f"{path} was trained with the activation {trained}, and this model has {', '.join(sorted(own))}"
        )


def _warn_of_input(trained: dict[str, Any], own: dict[str, Any], path: str) -> None:
    differing = [key for key in own if key in trained and None is not own[key] != trained[key]]
    if differing:
        lines = [f"{key}: {trained[key]} -> {own[key]}" for key in differing]
        logger.warning(
            f"{path} was trained with other inputs than this model has. Changed keys:\n  "
            + "\n  ".join(lines)
        )
