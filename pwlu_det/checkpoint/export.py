"""Export a trained backbone for use in other detectors."""

from __future__ import annotations

import os

from detectron2.modeling import build_model
from torch import nn

from pwlu_det.checkpoint.atomic import atomic_save
from pwlu_det.checkpoint.checkpointer import Checkpointer, describe_input
from pwlu_det.errors import CheckpointError


def check_paths(weights: str, output: str, suffix: str) -> None:
    """Raise CheckpointError if there are no ``weights``, or ``output`` cannot be written."""
    if not output.endswith(suffix):
        raise CheckpointError(f"--output is {output!r}; its name must end in {suffix}")
    folder = os.path.dirname(output) or "."
    if not os.path.isdir(folder):
        raise CheckpointError(f"--output: folder {folder} does not exist")
    if not os.path.isfile(weights):
        raise CheckpointError(f"--weights: file {weights} does not exist")


def export_backbone(cfg, weights: str, output: str, bottom_up: bool = False) -> None:
    """Write the backbone of a trained detector or classifier in detectron2's checkpoint format.

    The file can be used as the ``MODEL.WEIGHTS`` of any detector with the same backbone, and also loads into
    a bare backbone. It tells detectron2 to match parameter names by suffix, so the model may or may not have
    the prefixes ``backbone.`` and ``bottom_up.``. It also contains the input format and the pixel statistics;
    :class:`Checkpointer` warns if those of the other detector differ.

    Args:
        cfg: config of the trained model.
        weights: its checkpoint.
        output: the file to write, ``*.pth``.
        bottom_up: export only the ResNet, without the FPN: for detectors with another FPN or without one.

    Raises:
        CheckpointError: ``weights`` or ``output`` cannot be used, or ``weights`` lacks this backbone.
    """
    check_paths(weights, output, ".pth")
    model = load_model(cfg, weights)
    backbone = model.backbone
    state = (getattr(backbone, "bottom_up", backbone) if bottom_up else backbone).state_dict()
    state = {key.removeprefix("bottom_up."): value for key, value in state.items()}
    try:
        content = {"model": state, "input": describe_input(model), "activation": cfg.MODEL.ACTIVATION.NAME}
        atomic_save({**content, "__author__": "pwlu_det", "matching_heuristics": True}, output)
    except OSError as error:
        raise CheckpointError(f"--output {output} cannot be written: {error}") from error


def load_model(cfg, weights: str) -> nn.Module:
    """Build a model on the CPU, and load its backbone, and what else the file has.

    Raises:
        CheckpointError: ``weights`` cannot be used, or lacks this backbone.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    checkpointer = Checkpointer(model)
    checkpointer.load(weights, checkpointables=[])
    lacking = [key for key in checkpointer.incompatible.missing_keys if key.startswith("backbone.")]
    if lacking:
        raise CheckpointError(
            f"--weights {weights} does not contain the backbone of --config-file: {len(lacking)} tensors are "
            f"missing or have the wrong shape; the first is {lacking[0]}"
        )
    return model
