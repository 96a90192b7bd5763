"""Learned activation functions for detectron2.

Importing this package registers its backbones and datasets with detectron2, and its ops with fvcore's FLOP
counts. :mod:`pwlu_det.ops`, :mod:`pwlu_det.activations` and :mod:`pwlu_det.conversion` also work without
detectron2; all other public names then raise an ImportError.
"""

from __future__ import annotations

import importlib.util
from importlib import import_module

from pwlu_det.activations import PWLU, build_activation, fuse_norms, register_activation
from pwlu_det.activations.two_phase import TwoPhase
from pwlu_det.conversion import convert_model, for_inference
from pwlu_det.errors import CheckpointError, ConfigError, DatasetError, PwluDetError

__version__ = "0.1.0"

# Public names that need detectron2, and their modules.
_NEED_DETECTRON2 = {
    "Trainer": "engine.trainer",
    "TwoPhaseHook": "engine.phases",
    "add_pwlu_config": "config",
    "build_optimizer": "engine.optimizer",
    "build_phase_hook": "engine.phases",
    "build_train_loader": "engine.data_stream",
    "check_config": "preflight",
    "convert_activations": "backbone",
    "convert_heads": "backbone",
}

__all__ = [
    "PWLU",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "PwluDetError",
    "TwoPhase",
    "build_activation",
    "convert_model",
    "for_inference",
    "fuse_norms",
    "register_activation",
    *sorted(_NEED_DETECTRON2),
]


def __getattr__(name: str):
    if name not in _NEED_DETECTRON2:
        raise AttributeError(f"module 'pwlu_det' has no attribute {name!r}")
    if importlib.util.find_spec("detectron2") is None:
        raise ImportError(
            f"pwlu_det.{name} needs detectron2, which is not installed. Install it with: "
            "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
        )
    return getattr(import_module(f"pwlu_det.{_NEED_DETECTRON2[name]}"), name)


if importlib.util.find_spec("detectron2") is not None:
    import_module("pwlu_det.data")
    import_module("pwlu_det.analysis.flops")
    build_activation = import_module("pwlu_det.backbone").build_activation  # also accepts a config
