"""Funnel ReLU of Ma et al. 2020, "Funnel Activation for Visual Recognition"."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pwlu_det import ops


class FReLU(nn.Module):
    """max(x, BN(DepthwiseConv3x3(x))): padding 1, stride 1, a convolution with bias.

    With fixed statistics (in evaluation, or FrozenBN) the norm is folded into the convolution at each call.
    In training with ``nn.BatchNorm2d`` two tensors of the input's size are kept for the backward. Any other
    norm, SyncBN and GN among them, is called as it is, which keeps one more.

    Args:
        num_channels: C of the ``[B, C, H, W]`` input.
        norm: makes the norm of a number of channels.

    Attributes:
        conv: its weights are normal with standard deviation sqrt(2/9) at the start (fan out), its bias is
            uniform in [-1/3, 1/3].
        norm: weight 1 and bias 0 at the start.
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
        # A hook on the norm (detectron2's PreciseBN sets one) wants the norm to be called.
        norm, hooks = self.norm, self.norm._forward_pre_hooks or self.norm._forward_hooks
        if type(norm) is nn.BatchNorm2d and norm.affine and norm.momentum is not None and not hooks:
            return self._train(x)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.conv.weight.to(x.dtype), self.conv.bias.to(x.dtype)
            normed = norm(F.conv2d(x, weight, bias, padding=1, groups=x.shape[1]))
        return torch.maximum(x, normed.to(x.dtype))

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that does the norm's work, too."""
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return self.conv.weight * scale.view(-1, 1, 1, 1), (
            self.conv.bias - norm.running_mean
        ) * scale + norm.bias

    def _train(self, x: Tensor) -> Tensor:
        norm = self.norm
        y, mean, var = ops.frelu(x, self.conv.weight, self.conv.bias, norm.weight, norm.bias, norm.eps)
        if norm.track_running_stats:
            with torch.no_grad():
                count = x.numel() // x.shape[1]
                norm.num_batches_tracked += 1
                norm.running_mean.mul_(1 - norm.momentum).add_(mean, alpha=norm.momentum)
                # as torch does it: the unbiased variance is kept, the biased one normalises
                norm.running_var.mul_(1 - norm.momentum).add_(var, alpha=norm.momentum * count / (count - 1))
        return y


def _has_fixed_statistics(norm: nn.Module) -> bool:
    """Whether the norm is a fixed line for each channel: detectron2's FrozenBN, or batch norm in eval."""
    if isinstance(norm, _BatchNorm):
        return not norm.training and norm.track_running_stats and norm.affine
    return any(base.__name__ == "FrozenBatchNorm2d" for base in type(norm).__mro__)
