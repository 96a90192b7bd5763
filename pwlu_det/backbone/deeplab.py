"""The ResNet stem of detectron2's DeepLab project; imported when a backbone has one."""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.projects.deeplab.resnet import DeepLabStem
from torch import Tensor

from pwlu_det.backbone.blocks import FusedSites


class ActDeepLabStem(FusedSites, DeepLabStem):
    """``[B, 3, H, W]`` to ``[B, C, H/4, W/4]``."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.activate(self.conv1, self.act1, x)
        x = self.activate(self.conv2, self.act2, x)
        x = self.activate(self.conv3, self.act3, x)
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


BLOCKS = {DeepLabStem: (ActDeepLabStem, {"act1": "conv1", "act2": "conv2", "act3": "conv3"})}
