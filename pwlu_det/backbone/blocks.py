"""detectron2's ResNet stem, blocks and P6P7 with activation modules instead of inline ReLU calls.

Each class only defines ``forward``: conversion adds the activation modules to a block built by detectron2 and
then changes the block's class to the one defined here. The norm, the added shortcut and the activation are
one op where that is possible (:func:`pwlu_det.activations.norm_activation.norm_activation`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, DeformBottleneckBlock
from torch import Tensor, nn

from pwlu_det.activations.modules import is_plain_module
from pwlu_det.activations.norm_activation import norm_activation


class FusedSites:
    """A block whose norms and activations are called as one op where possible.

    Attributes:
        fuse_norm: whether to do so; if False, all modules are called.
        fuse_relu: whether to do so with ReLU as well, whose values are then equal to rounding only.
    """

    fuse_norm, fuse_relu = True, False

    def activate(
        self,
        conv: nn.Module,
        activation: nn.Module,
        x: Tensor,
        skipped: Tensor | None = None,
        shortcut: nn.Module | None = None,
    ) -> Tensor:
        """``activation(conv(x))``, with ``skipped`` or ``shortcut(skipped)`` added before the activation."""
        if not (self.fuse_norm and _ends_with_norm(conv)):
            out = conv(x)
            if skipped is not None:  # in place, as in detectron2: its layers do not save their output
                out += skipped if shortcut is None else shortcut(skipped)
            return activation(out)
        out, added_norm = _convolve(conv, x), None
        if shortcut is not None and _ends_with_norm(shortcut):
            skipped, added_norm = _convolve(shortcut, skipped), shortcut.norm
        elif shortcut is not None:
            skipped = shortcut(skipped)
        return norm_activation(conv.norm, activation, out, skipped, added_norm, self.fuse_relu)


def set_fusion(model: nn.Module, fuse_norm: bool, fuse_relu: bool) -> None:
    """Set these attributes of all converted blocks of a model."""
    for module in model.modules():
        if isinstance(module, FusedSites):
            module.fuse_norm, module.fuse_relu = fuse_norm, fuse_relu


def _ends_with_norm(conv: nn.Module) -> bool:
    """Whether the module is a convolution and then a norm, and nothing else sees what is between them."""
    seen = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return not seen and is_plain_module(conv, Conv2d) and conv.norm is not None and conv.activation is None


def _convolve(conv: Conv2d, x: Tensor) -> Tensor:
    """The convolution without its norm."""
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class ActBasicStem(FusedSites, BasicStem):
    """``[B, 3, H, W]`` to ``[B, C, H/4, W/4]``."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.activate(self.conv1, self.act1, x)
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class ActBasicBlock(FusedSites, BasicBlock):
    """``[B, C_in, H, W]`` to ``[B, C_out, H/stride, W/stride]``, like the blocks below."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.activate(self.conv1, self.act1, x)
        return self.activate(self.conv2, self.act2, out, x, self.shortcut)


class ActBottleneckBlock(FusedSites, BottleneckBlock):
    def forward(self, x: Tensor) -> Tensor:
        out = self.activate(self.conv1, self.act1, x)
        out = self.activate(self.conv2, self.act2, out)
        return self.activate(self.conv3, self.act3, out, x, self.shortcut)


class ActDeformBottleneckBlock(FusedSites, DeformBottleneckBlock):
    def forward(self, x: Tensor) -> Tensor:
        out = self.activate(self.conv1, self.act1, x)
        offset = self.conv2_offset(out)
        if self.deform_modulated:
            offset_x, offset_y, mask = offset.chunk(3, dim=1)
            out = self.conv2(out, torch.cat((offset_x, offset_y), dim=1), mask.sigmoid())
        else:
            out = self.conv2(out, offset)
        return self.activate(self.conv3, self.act3, self.act2(out), x, self.shortcut)


class ActLastLevelP6P7(LastLevelP6P7):
    """``[B, C_in, H, W]`` to P6 ``[B, C, H/2, W/2]`` and P7 ``[B, C, H/4, W/4]``."""

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(self.act(p6))]
