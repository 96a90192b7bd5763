"""Funnel ReLU of Ma et al. 2020, "Funnel Activation for Visual Recognition"."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pwlu_det import ops
from pwlu_det.activations.modules import is_plain_frozen_norm, is_plain_module, sync_group, track_statistics
from pwlu_det.activations.registry import register_activation
from pwlu_det.ops.library import without_autocast


@register_activation("frelu")
class FReLU(nn.Module):
    """max(x, BN(DepthwiseConv3x3(x))); the convolution has padding 1, stride 1 and a bias.

    With fixed statistics (in evaluation, or FrozenBN), the norm is folded into the convolution at each call.
    In training with ``nn.BatchNorm2d`` or ``nn.SyncBatchNorm``, two tensors of the input's size are saved for
    backward. ``nn.SyncBatchNorm`` pools its statistics over its process group, and works on CPUs too, unlike
    its own forward. Any other norm, such as GN, is called as a module, and one more tensor is saved; so is
    either module if it has hooks, parametrizations (pruning, weight norm) or a forward of its own.

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
        if not _is_plain_convolution(self.conv):
            return self._call_modules(x)
        if _has_fixed_statistics(self.norm):
            return ops.frelu_inference(x, *self._folded())
        if _takes_batch_statistics(self.norm):
            return self._train(x)
        return self._call_modules(x)

    def _call_modules(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            if _is_plain_convolution(self.conv):
                weight, bias = self.conv.weight.to(x.dtype), self.conv.bias.to(x.dtype)
                conv = F.conv2d(x, weight, bias, padding=1, groups=x.shape[1])
            else:  # in the dtype of its parameters, which only the module itself may convert
                conv = self.conv(x.to(next(self.parameters()).dtype))
            return torch.maximum(x, self.norm(conv).to(x.dtype))

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution with the norm folded in."""
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = (self.conv.bias - norm.running_mean) * scale + norm.bias
        return self.conv.weight * scale.view(-1, 1, 1, 1), bias

    def _train(self, x: Tensor) -> Tensor:
        norm, group = self.norm, sync_group(self.norm)
        parameters = self.conv.weight, self.conv.bias, norm.weight, norm.bias, norm.eps
        if group is None:
            y, mean, var = ops.frelu(x, *parameters)
            count = x.numel() // x.shape[1]
        else:
            y, mean, var, count = ops.frelu_sync(x, *parameters, group)
        track_statistics(norm, mean, var, count)
        return y


def _is_plain_convolution(conv: nn.Module) -> bool:
    """Whether the module is the depthwise convolution of the ops, and nothing else is done at its call."""
    if not is_plain_module(conv, nn.Conv2d) or conv.bias is None or conv.padding_mode != "zeros":
        return False
    sizes = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return depthwise and sizes == ((3, 3), (1, 1), (1, 1), (1, 1))


def _takes_batch_statistics(norm: nn.Module) -> bool:
    """Whether the norm is a plain batch norm, so that the fused op can replace it in training."""
    return is_plain_module(norm, nn.BatchNorm2d, nn.SyncBatchNorm) and _is_affine(norm)


def _has_fixed_statistics(norm: nn.Module) -> bool:
    """Whether the norm is a fixed affine map per channel: FrozenBN, or batch norm in evaluation."""
    if _takes_batch_statistics(norm):
        return not norm.training and norm.track_running_stats
    return is_plain_frozen_norm(norm)


def _is_affine(norm: _BatchNorm) -> bool:
    return norm.weight is not None and norm.bias is not None
