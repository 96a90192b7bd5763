"""One run of a model that finds its activations, and the channels, map sizes and inputs of each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pwlu_det.activations.modules import evaluating
from pwlu_det.conversion.calls import FUNCTIONS, Original, Path, caller

NUM_SAMPLES = 4096
"""Inputs per channel and call that are kept, at least, if there are as many."""

_FIRST = ("conv", "batch_norm", "group_norm", "instance_norm")
_LAST = ("linear", "layer_norm", "rms_norm")
_GATES = ("sigmoid", "hardsigmoid", "tanh")
_REARRANGE = ("permute", "transpose", "swap", "mov", "reshape", "view", "flatten", "einsum", "matmul", "T")


@dataclass
class Place:
    """A call site: a line of ``owner``'s forward that calls ``module``, or a function if that is None."""

    owner: nn.Module
    module: nn.Module | None
    path: Path
    function: str
    original: Callable[[Tensor], Tensor]
    example: Tensor
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    channel_dims: set[int | None] = field(default_factory=set)
    samples: list[Tensor] = field(default_factory=list)

    def obstacle(self, min_map_size: int) -> str:
        """Why it cannot be replaced, or an empty string."""
        channels_at = self.channel_dim
        spatial = [shape[2:] if channels_at == 1 else shape[1:-1] for shape in self.shapes]
        if max(max(sizes, default=1) for sizes in spatial) < min_map_size:
            return f"its maps are smaller than min_map_size={min_map_size}"
        if len(self.channel_dims) > 1 or None in self.channel_dims:
            return "which dimension holds the channels is not known"
        if len({shape[self.channel_dim] for shape in self.shapes}) > 1:
            return "it is called with different numbers of channels"
        return ""

    @property
    def channel_dim(self) -> int:
        return -1 if self.channel_dims == {-1} else 1

    @property
    def channels(self) -> int:
        return next(iter(self.shapes))[self.channel_dim]

    def inputs(self) -> Tensor:
        """``[C, S]``."""
        return torch.cat(self.samples, 1)


class Recorder(TorchFunctionMode):
    """Collects the places of a model that calls activations while it is active."""

    def __init__(self):
        super().__init__()
        self.places: dict[tuple, Place] = {}
        self.others: dict[tuple, tuple[nn.Module | None, str]] = {}
        """Calls of other activations: the module that calls them, and what they are."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in FUNCTIONS:
            self._record(function, args, kwargs)
        other = _other_activation(function, args, kwargs)
        if other:
            module, path, _ = caller(sys._getframe())
            self.others[id(module), path] = module, other
        sources = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        sources += [v for a in args if isinstance(a, (list, tuple)) for v in a if isinstance(v, Tensor)]
        channel_dim = _channel_dim(getattr(function, "__name__", ""), sources)
        result = function(*args, **kwargs)
        if isinstance(result, Tensor):
            if getattr(function, "__name__", "") in _GATES and sources:
                result._pwlu_gate_of = sources[0]
            same = sources and result.dim() == sources[0].dim()
            result._pwlu_channel_dim = channel_dim if same else None
        return result

    def _record(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        module, path, frame = caller(sys._getframe(1))
        x = args[0] if args else kwargs["input"]
        others = {k: v for k, v in kwargs.items() if k != "input"}
        original = Original(FUNCTIONS[function], args[1:], others)
        owner = module
        if module is not None and _is_activation(module, original, x):
            owner, path, _ = caller(frame)
        else:
            module = None
        if owner is None:
            return
        key = (id(owner), id(module), path)
        place = self.places.setdefault(key, Place(owner, module, path, FUNCTIONS[function], original, x[:0]))
        place.shapes.add(tuple(x.shape))
        # In two dimensions there is no doubt.
        place.channel_dims.add(1 if x.dim() == 2 else getattr(x, "_pwlu_channel_dim", None))
        place.samples.append(_sample(x, place.channel_dim))


def record(model: nn.Module, inputs: tuple) -> tuple[list[Place], list[tuple[nn.Module | None, str]], Any]:
    """The places that a call in evaluation mode reaches, in order, ``Recorder.others``, and its output."""
    recorder = Recorder()
    with evaluating(model), recorder:
        output = model(*inputs)
    return list(recorder.places.values()), list(recorder.others.values()), output


def _other_activation(function: Callable, args: tuple, kwargs: dict[str, Any]) -> str:
    """The name of an activation that is not replaced: written by hand, or of another kind; or ""."""
    name = getattr(function, "__name__", "").strip("_")
    if name in ("threshold", "glu"):
        return name
    if name in ("clamp", "clamp_min", "clip"):
        bounds = [*args[1:], *kwargs.values()]
        return name if bounds[:1] == [0] and bounds[1:] in ([], [None]) else ""
    if name in ("mul", "rmul", "imul") and len(args) == 2:
        for x, gate in (args, args[::-1]):
            if isinstance(gate, Tensor) and getattr(gate, "_pwlu_gate_of", None) is x:
                return "x * gate(x)"
    return ""


def _channel_dim(name: str, sources: list[Tensor]) -> int | None:
    if any(part in name for part in _FIRST):
        return 1
    if any(part in name for part in _LAST):
        return -1
    if not sources or any(name.startswith(part) for part in _REARRANGE):
        return None
    return getattr(sources[0], "_pwlu_channel_dim", None)


def _is_activation(module: nn.Module, original: Callable, x: Tensor) -> bool:
    """Whether a call of the module is that of the function, and nothing else."""
    if any(True for _ in module.children()) or any(True for _ in module.parameters()):
        return False
    forward = type(module).forward
    with torch._C.DisableTorchFunction():
        return torch.equal(forward(module, x.clone()), original(x))


def _sample(x: Tensor, channel_dim: int) -> Tensor:
    x = x.detach().movedim(channel_dim, 0).flatten(1)
    if x.shape[1] > 2 * NUM_SAMPLES:
        # At random: a constant step may be a multiple of the width, and so give pixels of a few columns only.
        generator = torch.Generator().manual_seed(0)
        x = x[:, torch.randint(x.shape[1], (2 * NUM_SAMPLES,), generator=generator).to(x.device)]
    return x.float().clone()
