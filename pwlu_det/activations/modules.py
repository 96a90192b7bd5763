"""Determine which modules a fused op may replace: those whose call only runs the forward of a known class."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_FROZEN_NORMS = (
    ("detectron2.layers.batch_norm", "FrozenBatchNorm2d"),
    ("torchvision.ops.misc", "FrozenBatchNorm2d"),
)


def is_plain_module(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether a call of the module runs the forward of one of ``classes`` and nothing else.

    It is False for subclasses, and if the module has hooks, a forward of its own, or parametrizations, which
    change its class. Pruning, weight norm and spectral norm are hooks or parametrizations.
    """
    own_hooks = any(getattr(module, hooks) for hooks in _HOOKS)
    return (
        type(module) in classes
        and "forward" not in module.__dict__
        and not own_hooks
        and not _has_any_global_hook()
    )


def is_plain_frozen_norm(module: nn.Module) -> bool:
    """Whether the module is FrozenBatchNorm2d of detectron2 or torchvision, and plain."""
    known = (type(module).__module__, type(module).__name__) in _FROZEN_NORMS
    return known and is_plain_module(module, type(module))
