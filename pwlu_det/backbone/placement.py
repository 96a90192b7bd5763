"""The sites of a detector, and where the authors of each activation use it in a ResNet-FPN."""

from __future__ import annotations

from dataclasses import dataclass

from pwlu_det.activations.registry import keeps_channels
from pwlu_det.errors import PwluDetError

STAGES = ("stem", "res2", "res3", "res4", "res5", "top")
"""``top`` is the ReLU between P6 and P7 in RetinaNet's FPN."""

POSITIONS = ("act1", "act2", "act3")
"""Positions in a block. A basic block (ResNet-18 and ResNet-34) has no ``act3``."""

HEADS = {
    "retinanet": "head",
    "rpn": "proposal_generator.rpn_head",
    "box_head": "roi_heads.box_head",
    "mask_head": "roi_heads.mask_head",
    "keypoint_head": "roi_heads.keypoint_head",
    "sem_seg_head": "sem_seg_head",
    "res5": "roi_heads.res5",
}
"""The heads, and where they are in a model. ``res5`` is the last stage of a C4 model."""


@dataclass(frozen=True)
class Placement:
    """The stages and positions where an activation is used; all other sites keep ReLU."""

    stages: tuple[str, ...] = STAGES
    positions: tuple[str, ...] = POSITIONS
    positions_of_basic_blocks: tuple[str, ...] = POSITIONS


# All other activations are used everywhere.
_PLACEMENTS = {
    "frelu": Placement(stages=("res2", "res3", "res4")),
    # After the 3x3 convolution. A basic block has two of them; we take it to be the first.
    "meta_acon": Placement(("res2", "res3", "res4", "res5"), ("act2",), ("act1",)),
    # Not after the shortcut addition: no norm bounds the sum, and its powers overflow within a few blocks.
    "slaf": Placement(positions=("act1", "act2"), positions_of_basic_blocks=("act1",)),
}


def get_placement(name: str) -> Placement:
    """The authors' placement of a registered activation.

    Raises:
        PwluDetError: the activation is unknown or cannot replace ReLU; the message says why.
    """
    if not keeps_channels(name):
        raise PwluDetError(f"'{name}' cannot replace ReLU: its output has fewer channels than its input")
    return _PLACEMENTS.get(name, Placement())
