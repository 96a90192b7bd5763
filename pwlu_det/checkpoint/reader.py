"""Read checkpoints from untrusted files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pwlu_det.checkpoint.array_pickle import load_arrays
from pwlu_det.checkpoint.tensor_file import load_numbers, load_tensors
from pwlu_det.checkpoint.torchvision_names import from_torchvision
from pwlu_det.errors import CheckpointError


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint without running code from the file.

    As in detectron2, the extension determines the format: ``.pkl`` is a pickle of NumPy arrays (with
    detectron2's or Caffe2's parameter names), ``.pyth`` is a pycls checkpoint, and any other file is one
    written by ``torch.save``, either a dictionary with the key ``model`` or a bare state dict. The names in
    ResNets of torchvision and timm become detectron2's.

    Returns:
        A dictionary whose ``model`` maps names to dense CPU tensors. It also contains everything else in the
        file and, if names must be converted, ``__author__`` and ``matching_heuristics``, which tell
        detectron2 how. ``activation`` is the name of the activation that the weights were trained with,
        if it is known.

    Raises:
        CheckpointError: the file cannot be read, would run code, or contains no weights.
    """
    with _one_error(path):
        if path.endswith(".pkl"):
            checkpoint = _read_pkl(path)
        elif path.endswith(".pyth"):
            checkpoint = _read_pycls(path)
        else:
            checkpoint = _as_dict(load_tensors(path))
            if "model" not in checkpoint:
                checkpoint = {"model": checkpoint}
        _check_model(checkpoint["model"])
        return from_torchvision(checkpoint)


def read_iteration(path: str) -> int | None:
    """The iteration after which a training checkpoint was written; None if the file is another one.

    Tensors are not read, so the file may still be damaged.

    Raises:
        CheckpointError: the file cannot be read, or its iteration is out of range.
    """
    with _one_error(path):
        iteration = load_numbers(path).get("iteration")
        if iteration is not None and (type(iteration) is not int or not 0 <= iteration < 2**31):
            raise ValueError(f"its iteration is {iteration!r}; it must be an integer from 0 to 2^31 - 1")
        return iteration


@contextmanager
def _one_error(path: str) -> Iterator[None]:
    try:
        if not os.path.isfile(path):  # opening a named pipe would wait for its other end
            raise ValueError("it is not a regular file" if os.path.exists(path) else "it does not exist")
        yield
    except Exception as error:  # a broken or malicious file can raise anything
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {_reason(error)}. It must be a .pth file of tensors or "
            "a .pkl file of NumPy arrays."
        ) from error


def _read_pkl(path: str) -> dict[str, Any]:
    with open(path, "rb") as f:
        content = _as_dict(load_arrays(f))
    if "model" in content and "__author__" in content:
        return {**content, "model": _as_tensors(_as_dict(content["model"]))}
    arrays = _as_dict(content.get("blobs", content))  # detectors have "blobs", classifiers do not
    arrays = {name: value for name, value in arrays.items() if not str(name).endswith("_momentum")}
    model = _as_tensors(arrays)
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True, "activation": "relu"}


def _read_pycls(path: str) -> dict[str, Any]:
    model = _as_dict(_as_dict(load_tensors(path))["model_state"])
    model = {name: value for name, value in model.items() if not str(name).endswith("num_batches_tracked")}
    return {"model": model, "__author__": "pycls", "matching_heuristics": True}


def _check_model(model: Any) -> None:
    if not _as_dict(model):
        raise ValueError("it contains no tensors")
    for name, value in model.items():
        if not isinstance(name, str):
            raise ValueError(f"its key {name!r} is not a string")
        if type(value) not in (Tensor, nn.Parameter):
            raise ValueError(f"its {name!r} is a {type(value).__name__}, not a tensor")
        dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not dense or value.is_complex():
            raise ValueError(f"its {name!r} is not a dense tensor of real numbers")


def _as_dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"it contains a {type(value).__name__} where a dictionary is expected")
    return value


def _as_tensors(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for name, a in arrays.items()}


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = " ".join(str(error).split())[:300]
    is_clear = isinstance(error, (ValueError, OSError, UnpicklingError)) and text
    return text if is_clear else f"{type(error).__name__} {text}".strip()
