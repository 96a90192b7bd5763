"""The ResNet stem of detectron2's DeepLab project; imported when a backbone has one."""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.projects.deeplab.resnet import DeepLabStem
from torch import Tensor


class ActDeepLabStem(DeepLabStem):
    """``[B, 3, H, W]`` to ``[B, C, H/4, W/4]``."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv1(x))
        x = self.act2(self.conv2(x))
        x = self.act3(self.conv3(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


BLOCKS = {DeepLabStem: (ActDeepLabStem, {"act1": "conv1", "act2": "conv2", "act3": "conv3"})}
