"""Checkpoints that are read without running code from the file."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

_ADMITTED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
}


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which reads ``.pkl`` files only if they hold NumPy arrays and nothing else,
    and ``.pth`` files with ``weights_only``.

    Attributes:
        incompatible: missing, unexpected and wrongly shaped keys of the last loading.

    Raises:
        pickle.UnpicklingError: the file asks for any other object; none is made.
    """

    incompatible = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            with open(filename, "rb") as f:
                _ArrayUnpickler(f, encoding="latin1").load()  # a first reading, to refuse what is foreign
        return super()._load_file(filename)

    def _torch_load(self, filename: str) -> dict[str, Any]:
        return torch.load(filename, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint: dict[str, Any]):
        self.incompatible = super()._load_model(checkpoint)
        return self.incompatible


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(
                f"the file holds a {module}.{name}; only dictionaries of NumPy arrays are admitted"
            )
        return super().find_class(module, name)
