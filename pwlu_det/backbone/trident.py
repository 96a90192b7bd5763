"""The block of detectron2's TridentNet project; imported when a backbone has one."""

from __future__ import annotations

import torch
from torch import Tensor
from tridentnet.trident_backbone import TridentBottleneckBlock


class ActTridentBottleneckBlock(TridentBottleneckBlock):
    """A bottleneck block with one 3x3 convolution applied at several dilations; branches share all weights.

    The first block takes a tensor, the last one concatenates its branches along the batch, and those between
    take and return a list of branches. Each activation is called once per branch, like the norms.
    """

    def forward(self, x: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        if not isinstance(x, list):
            fast = not self.training and self.test_branch_idx != -1
            x = [x] * (1 if fast else self.num_branch)
        out = self.conv2([self.act1(self.conv1(branch)) for branch in x])
        out = [self.conv3(self.act2(branch)) for branch in out]
        for branch, skipped in zip(out, x):
            branch += skipped if self.shortcut is None else self.shortcut(skipped)
        out = [self.act3(branch) for branch in out]
        return torch.cat(out) if self.concat_output else out


BLOCKS = {
    TridentBottleneckBlock: (
        ActTridentBottleneckBlock,
        {"act1": "conv1", "act2": "conv2", "act3": "conv3"},
    )
}
