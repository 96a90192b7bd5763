"""Export of what another detector can start from."""

from __future__ import annotations

import os

from detectron2.modeling import build_model
from torch import nn

from pwlu_det.checkpoint.atomic import atomic_save
from pwlu_det.checkpoint.checkpointer import Checkpointer
from pwlu_det.errors import CheckpointError


def export_backbone(cfg, weights: str, output: str, bottom_up: bool = False) -> None:
    """Write the backbone of a trained detector in detectron2's checkpoint format.

    The file loads as ``MODEL.WEIGHTS`` of any detector with the same backbone, and into a bare backbone. It
    asks detectron2 to match names by their endings, so the prefixes ``backbone.`` and ``bottom_up.`` may
    be there or not.

    Args:
        cfg: config of the trained detector.
        weights: its checkpoint.
        output: the file to write, ``*.pth``.
        bottom_up: leave the FPN out: a ResNet for detectors that have another FPN, or none.

    Raises:
        CheckpointError: ``weights`` or ``output`` cannot be used, or ``weights`` does not hold this backbone.
    """
    if not output.endswith(".pth"):
        raise CheckpointError(f"--output is {output!r}; its name must end in .pth")
    folder = os.path.dirname(output) or "."
    if not os.path.isdir(folder):
        raise CheckpointError(f"--output: there is no folder {folder}")
    if not os.path.isfile(weights):
        raise CheckpointError(f"--weights: there is no file {weights}")

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    _load(model, weights)

    backbone = model.backbone
    state = (backbone.bottom_up if bottom_up else backbone).state_dict()
    state = {key.removeprefix("bottom_up."): value for key, value in state.items()}
    try:
        atomic_save({"model": state, "__author__": "pwlu_det", "matching_heuristics": True}, output)
    except OSError as error:
        raise CheckpointError(f"--output {output} cannot be written: {error}") from error


def _load(model: nn.Module, weights: str) -> None:
    checkpointer = Checkpointer(model)
    checkpointer.load(weights, checkpointables=[])
    lacking = [key for key in checkpointer.incompatible.missing_keys if key.startswith("backbone.")]
    lacking += [key for key, *_ in checkpointer.incompatible.incorrect_shapes if key.startswith("backbone.")]
    if lacking:
        raise CheckpointError(
            f"--weights {weights} does not hold the backbone of --config-file: {len(lacking)} tensors are "
            f"missing or of another shape, the first is {lacking[0]}"
        )
