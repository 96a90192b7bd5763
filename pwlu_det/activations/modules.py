"""Which modules a fused op may replace, what else a norm does that is replaced, and evaluation of a model.

A module may be replaced if a call of it only runs the forward of a known class.
"""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
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


def sync_group(norm: nn.Module) -> dist.ProcessGroup | None:
    """The process group over which the norm pools its statistics, or None if there is only one process."""
    if not (isinstance(norm, nn.SyncBatchNorm) and norm.training):
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


@torch.no_grad()
def track_statistics(norm: _BatchNorm, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
    """Update the running statistics with those of a batch, as the norm itself does in training.

    ``var`` is the population variance; the buffer has the unbiased one. There is no synchronization with a
    GPU.
    """
    if not (norm.training and norm.track_running_stats):
        return
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # a cumulative average
            momentum = norm.num_batches_tracked.to(norm.running_mean.dtype).reciprocal()
    others = (count - 1).clamp(min=1) if isinstance(count, Tensor) else max(count - 1, 1)
    for running, new in ((norm.running_mean, mean), (norm.running_var, var * (count / others))):
        # As data: the norm's own update is not seen by autograd either, which has perhaps saved the buffer.
        running.data.lerp_(new.to(running.dtype), 0.0 if momentum is None else momentum)


@contextlib.contextmanager
def evaluating(model: nn.Module):
    """Evaluation mode without gradients; modes and random numbers are then as before."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng():
            yield model.eval()
    finally:
        for module, training in modes.items():
            module.training = training
