"""Models for inference: norms folded into convolutions, and PWLUs by functions that every runtime has."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pwlu_det.activations import PWLU
from pwlu_det.activations.modules import is_plain_frozen_norm
from pwlu_det.ops.reference import MIN_WIDTH

MAX_ERROR = 2.0**-20
"""Slope and offset are used up to this bound of their rounding error, relative to the largest point."""


class PiecewiseLinear(nn.Module):
    """A PWLU in evaluation as in section 4.3 of the paper, by functions that ONNX has, too.

    The number of the segment is a gather's index into one row of a table per channel, which onnxruntime
    computes several times faster than a gather by one index into all channels. With S and O, the slope and
    the offset of each segment, y = x S + O. Where that cancels too much in float32, as for narrow bounds far
    from zero, it is y = A + R t, where t is the position within the segment. Finite inputs only.
    """

    def __init__(self, pwlu: PWLU):
        super().__init__()
        points, left, right, left_slope, right_slope = (p.detach().double() for p in pwlu._parameter_list())
        num_intervals = points.shape[1] - 1
        length = (right - left).clamp(min=MIN_WIDTH) / num_intervals
        edges = left[:, None] + length[:, None] * torch.arange(num_intervals + 1).to(length)
        rise = points.diff(dim=1)
        slope = torch.cat([left_slope[:, None], rise / length[:, None], right_slope[:, None]], 1)
        start, value = torch.cat([edges[:, :1], edges], 1), torch.cat([points[:, :1], points], 1)
        offset = value - start * slope
        self.local = not _is_accurate(slope, offset, edges, points)
        if self.local:
            slope = slope * length[:, None]
            offset = torch.cat([points[:, :1] - slope[:, :1], points], 1)
        self.last = num_intervals + 1
        self.register_buffer("slope", slope.float())
        self.register_buffer("offset", offset.float())
        # x to the number of the segment, from 0
        self.register_buffer("left", left.float())
        self.register_buffer("scale", (1 / length).float())
        self.register_buffer("shift", (1 - left / length).float())

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, in float32."""
        size = [-1, *[1] * (x.dim() - 2)]
        scale = self.scale.view(size)
        if self.local:
            position = (x - self.left.view(size)) * scale + 1
            segment = position.floor().clamp(0, self.last)
        else:
            segment = (x * scale + self.shift.view(size)).clamp(0, self.last)
        index = segment.long().reshape(x.shape[0], x.shape[1], -1)
        slope, offset = (
            table.expand(x.shape[0], x.shape[1], -1).gather(2, index).view(x.shape)
            for table in (self.slope, self.offset)
        )
        return (position - segment if self.local else x) * slope + offset


def _is_accurate(slope: Tensor, offset: Tensor, edges: Tensor, points: Tensor) -> bool:
    """Whether x S + O has a small error within the bounds of every channel."""
    inner, largest = slope[:, 1:-1].abs(), torch.maximum(edges[:, :-1].abs(), edges[:, 1:].abs())
    error = (inner * largest + offset[:, 1:-1].abs()).amax(1) * torch.finfo(torch.float32).eps / 2
    return bool((error <= MAX_ERROR * points.abs().amax(1)).all())


def for_inference(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, with norms folded and PWLUs replaced."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(model.modules()):
        _fold_norm(module)
        for name, child in module.named_children():
            if isinstance(child, PWLU) and not child.computes_original:
                setattr(module, name, PiecewiseLinear(child))
    return model


def _fold_norm(module: nn.Module) -> None:
    """Fold the norm of a convolution of detectron2, or of an F-ReLU, into the convolution."""
    conv, norm = getattr(module, "conv", module), getattr(module, "norm", None)
    if not isinstance(conv, nn.Conv2d) or norm is None:
        return
    fixed = isinstance(norm, _BatchNorm) and norm.track_running_stats and norm.weight is not None
    if not (fixed or is_plain_frozen_norm(norm)):
        return
    tensors = (conv.weight, conv.bias, norm.running_mean, norm.running_var)
    wide = [tensor if tensor is None else tensor.double() for tensor in tensors]
    weight, bias = fuse_conv_bn_weights(*wide, norm.eps, norm.weight.double(), norm.bias.double())
    conv.weight, conv.bias = (
        nn.Parameter(v.to(conv.weight.dtype), requires_grad=False) for v in (weight, bias)
    )
    module.norm = None if conv is module else nn.Identity()
