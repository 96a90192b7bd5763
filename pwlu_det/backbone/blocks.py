"""detectron2's ResNet stem, blocks and P6P7 with activation modules instead of inline ReLU calls.

Each class only defines ``forward``: conversion adds the activation modules to a block built by detectron2 and
then changes the block's class to the one defined here. The shortcut is added in place, as in detectron2. This
is safe because the output of a convolution or norm is not saved for its own backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, DeformBottleneckBlock
from torch import Tensor


class ActBasicStem(BasicStem):
    """``[B, 3, H, W]`` to ``[B, C, H/4, W/4]``."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class ActBasicBlock(BasicBlock):
    """``[B, C_in, H, W]`` to ``[B, C_out, H/stride, W/stride]``, like the blocks below."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.conv1(x))
        out = self.conv2(out)
        out += x if self.shortcut is None else self.shortcut(x)
        return self.act2(out)


class ActBottleneckBlock(BottleneckBlock):
    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.conv1(x))
        out = self.act2(self.conv2(out))
        out = self.conv3(out)
        out += x if self.shortcut is None else self.shortcut(x)
        return self.act3(out)


class ActDeformBottleneckBlock(DeformBottleneckBlock):
    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.conv1(x))
        offset = self.conv2_offset(out)
        if self.deform_modulated:
            offset_x, offset_y, mask = offset.chunk(3, dim=1)
            out = self.conv2(out, torch.cat((offset_x, offset_y), dim=1), mask.sigmoid())
        else:
            out = self.conv2(out, offset)
        out = self.conv3(self.act2(out))
        out += x if self.shortcut is None else self.shortcut(x)
        return self.act3(out)


class ActLastLevelP6P7(LastLevelP6P7):
    """``[B, C_in, H, W]`` to P6 ``[B, C, H/2, W/2]`` and P7 ``[B, C, H/4, W/4]``."""

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(self.act(p6))]
