"""Convert state to the types that the checkpoint reader allows: tensors and built-in Python types."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pwlu_det.errors import CheckpointError

_VALUES = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray),
    *(Tensor, nn.Parameter, torch.Size, torch.dtype, torch.device),
)


def plain(value: Any, path: str) -> Any:
    """Convert NumPy scalars and arrays in ``value`` to Python numbers and tensors.

    Args:
        path: name of the state for error messages, for example ``model_0000099.trainer.hooks``.

    Raises:
        CheckpointError: a value has another type, which ``torch.load(weights_only=True)`` would reject.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.dtype.char not in "gG":
        # torch has neither other byte orders nor long doubles, "g" and "G".
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in (dict, OrderedDict, Counter):
        items = {plain(key, path): plain(item, f"{path}.{key}") for key, item in value.items()}
        return type(value)(items)
    if type(value) in (list, tuple, set):
        return type(value)(plain(item, f"{path}[{i}]") for i, item in enumerate(value))
    if isinstance(value, Tensor) and value.numel() * value.itemsize > _storage_size(value):
        return value.contiguous()  # an expanded tensor, which the reader could take for an attack
    if type(value) not in _VALUES:
        raise CheckpointError(
            f"{path} is of type {type(value).__module__}.{type(value).__qualname__}, which is not "
            "allowed in a checkpoint; allowed are tensors, dictionaries, lists, tuples, sets, strings, "
            "numbers and NumPy arrays of numbers"
        )
    return value


def _storage_size(value: Tensor) -> float:
    return value.untyped_storage().nbytes() if value.layout == torch.strided else float("inf")
