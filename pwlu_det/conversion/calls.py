"""Which line of which module calls an activation, and modules that replace one such call."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pwlu_det.errors import PwluDetError

_NAMES = (
    *("relu", "relu6", "silu", "gelu", "hardswish", "leaky_relu", "elu", "celu", "selu", "mish"),
    *("softplus", "hardtanh"),
)
FUNCTIONS: dict[Callable, str] = {
    getattr(place, name + suffix): name
    for place in (F, torch, Tensor)
    for name in _NAMES
    for suffix in ("", "_")
    if hasattr(place, name + suffix)
}
"""The activations of torch, and their names."""


class Original:
    """An activation of torch with its options, out of place. It can be pickled."""

    def __init__(self, name: str, args: tuple, kwargs: dict[str, Any]):
        self.name, self.args, self.kwargs = name, args, kwargs

    def __call__(self, x: Tensor) -> Tensor:
        return getattr(F, self.name)(x.clone(), *self.args, **self.kwargs)


_CALL = nn.Module._call_impl.__code__

Path = tuple[int, ...]
"""The positions in the bytecode of a module's forward, and of the functions that it calls, of one call."""


def caller(frame: FrameType | None) -> tuple[nn.Module | None, Path, FrameType | None]:
    """The innermost module being called, the path from it to ``frame``, and the frame that calls it."""
    path = []
    while frame is not None:
        if frame.f_code is _CALL:
            return frame.f_locals["self"], tuple(path), frame.f_back
        package, _, rest = frame.f_globals.get("__name__", "").partition(".")
        if package != "torch" and not (package == "pwlu_det" and rest.startswith("conversion")):
            path.append(frame.f_lasti)
        frame = frame.f_back
    return None, tuple(path), None


class CallSites(nn.ModuleList):
    """Replaces a module that is called on several lines: each line has its own activation."""

    def __init__(self, activations: Sequence[nn.Module], paths: Sequence[Path]):
        super().__init__(activations)
        self.paths = list(paths)

    def forward(self, x: Tensor) -> Tensor:
        _, _, frame = caller(sys._getframe())
        owner, path, _ = caller(frame)
        return find(self, path, owner)(x)


def find(sites: CallSites, path: Path, owner: nn.Module | None) -> nn.Module:
    """The activation of a call.

    Raises:
        PwluDetError: the example did not call it.
    """
    if torch.compiler.is_compiling():
        raise PwluDetError(
            f"{type(owner).__name__}: torch.compile does not support an activation per line of a forward; "
            "convert a model whose activations are modules that are each called on one line"
        )
    if path not in sites.paths:
        raise PwluDetError(
            f"{type(owner).__name__} calls an activation on a line that convert_model's example did not "
            "reach; convert the model with an example that reaches all lines"
        )
    return sites[sites.paths.index(path)]


class _Dispatch(TorchFunctionMode):
    """Calls the activations of ``owner`` where its own code calls functions."""

    def __init__(self, owner: nn.Module):
        super().__init__()
        self.owner = owner

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in FUNCTIONS:
            owner, path, _ = caller(sys._getframe())
            if owner is self.owner and path not in owner.kept_paths:
                x = args[0] if args else kwargs["input"]
                return find(owner.activation_sites, path, owner)(x)
        return function(*args, **kwargs)


class Dispatching:
    """A module whose forward calls activations as functions; they are now in ``activation_sites``."""

    def forward(self, *args, **kwargs):
        with _Dispatch(self):
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol):
        state = super().__reduce_ex__(protocol)[2]
        return _new, (type(self).original,), state


@functools.cache
def dispatching(cls: type[nn.Module]) -> type[nn.Module]:
    """A subclass that dispatches; it is made anew in the process that loads a pickle."""
    return type(cls.__name__, (Dispatching, cls), {"original": cls, "__module__": cls.__module__})


def _new(cls: type[nn.Module]) -> nn.Module:
    converted = dispatching(cls)
    return converted.__new__(converted)
