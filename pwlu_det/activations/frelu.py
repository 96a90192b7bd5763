"""Funnel ReLU of Ma et al. 2020, "Funnel Activation for Visual Recognition"."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pwlu_det import ops
from pwlu_det.activations.registry import register_activation


@register_activation("frelu")
class FReLU(nn.Module):
    """max(x, BN(DepthwiseConv3x3(x))); the convolution has padding 1, stride 1 and a bias.

    With fixed statistics (in evaluation, or FrozenBN), the norm is folded into the convolution at each call.
    In training with ``nn.BatchNorm2d`` or ``nn.SyncBatchNorm``, two tensors of the input's size are saved for
    backward. ``nn.SyncBatchNorm`` pools its statistics over its process group, and works on CPUs too, unlike
    its own forward. Any other norm, such as GN, is called as a module, and one more tensor is saved.

    Args:
        num_channels: C of the ``[B, C, H, W]`` input.
        norm: a function that takes the number of channels and returns a norm.

    Attributes:
        conv: its weights are initialized from a normal distribution with standard deviation sqrt(2/9) (fan
            out), and its bias from a uniform distribution in [-1/3, 1/3].
        norm: initialized with weight 1 and bias 0.
    """

    def __init__(self, num_channels: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.conv = nn.Conv2d(num_channels, num_channels, kernel_size=3, padding=1, groups=num_channels)
        nn.init.normal_(self.conv.weight, std=math.sqrt(2 / 9))
        nn.init.uniform_(self.conv.bias, -1 / 3, 1 / 3)
        self.norm = norm(num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape, dtype and layout."""
        if _has_fixed_statistics(self.norm):
            return ops.frelu_inference(x, *self._folded())
        if _takes_batch_statistics(self.norm):
            return self._train(x)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.conv.weight.to(x.dtype), self.conv.bias.to(x.dtype)
            normed = self.norm(F.conv2d(x, weight, bias, padding=1, groups=x.shape[1]))
        return torch.maximum(x, normed.to(x.dtype))

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution with the norm folded in."""
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = (self.conv.bias - norm.running_mean) * scale + norm.bias
        return self.conv.weight * scale.view(-1, 1, 1, 1), bias

    def _train(self, x: Tensor) -> Tensor:
        norm, group = self.norm, _sync_group(self.norm)
        parameters = self.conv.weight, self.conv.bias, norm.weight, norm.bias, norm.eps
        if group is None:
            y, mean, var = ops.frelu(x, *parameters)
            count = torch.tensor(x.numel() // x.shape[1], dtype=torch.float64)
        else:
            y, mean, var, count = ops.frelu_sync(x, *parameters, group)
        if norm.track_running_stats:
            _track(norm, mean, var, count)
        return y


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Update the running statistics, without synchronizing with the GPU."""
    norm.num_batches_tracked += 1
    momentum = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    unbiased = var * (count / (count - 1).clamp(min=1))  # as in torch, which normalizes with the biased one
    for running, value in (norm.running_mean, mean), (norm.running_var, unbiased):
        running.mul_(1 - momentum).add_(value * momentum)


def _sync_group(norm: nn.Module) -> dist.ProcessGroup | None:
    """The process group over which the norm pools its statistics, or None if there is only one process."""
    if not (isinstance(norm, nn.SyncBatchNorm) and norm.training):
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _takes_batch_statistics(norm: nn.Module) -> bool:
    """Whether the norm is a plain batch norm, so that the fused op can replace it in training."""
    # A hook on the norm (detectron2's PreciseBN adds one) requires the norm to be called.
    hooks = norm._forward_pre_hooks or norm._forward_hooks
    return type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm) and _is_affine(norm) and not hooks


def _has_fixed_statistics(norm: nn.Module) -> bool:
    """Whether the norm is a fixed affine map per channel: detectron2's FrozenBN, or batch norm in eval."""
    if isinstance(norm, _BatchNorm):
        return not norm.training and norm.track_running_stats and _is_affine(norm)
    return any(base.__name__ == "FrozenBatchNorm2d" for base in type(norm).__mro__)


def _is_affine(norm: _BatchNorm) -> bool:
    return norm.weight is not None and norm.bias is not None
