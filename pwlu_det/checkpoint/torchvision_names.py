"""Weights of torchvision's and timm's ResNets, under detectron2's names."""

from __future__ import annotations

import re
from typing import Any

_MARKS = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight")
_NAMES = (
    (r"^(conv|bn)1\.", r"stem.\g<0>"),
    (r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}"),
    (r"bn(\d)\.", r"conv\1.norm."),
    (r"downsample\.0\.", "shortcut."),
    (r"downsample\.1\.", "shortcut.norm."),
)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def from_torchvision(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Rename the weights of a ResNet of torchvision or timm; others are returned as they are.

    The result also says that these networks have ReLU, and RGB images with torchvision's statistics.
    """
    model = checkpoint["model"]
    if any(mark not in model for mark in _MARKS):
        return checkpoint
    return {
        "model": {_rename(name): value for name, value in model.items() if not name.startswith("fc.")},
        "input": {
            "INPUT.FORMAT": "RGB",
            "MODEL.PIXEL_MEAN": [round(255 * value, 3) for value in _MEAN],
            "MODEL.PIXEL_STD": [round(255 * value, 3) for value in _STD],
        },
        "activation": "relu",
        "__author__": "torchvision",
        "matching_heuristics": True,
    }


def _rename(name: str) -> str:
    for pattern, new in _NAMES:
        name = re.sub(pattern, new, name)
    return name
