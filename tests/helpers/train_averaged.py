"""The training command for a model whose loss is an average over images.

Every rank saves its state after each iteration, as rank<rank>_<iteration>.pth in OUTPUT_DIR.

Several processes compute the same as one process with the global batch only for such a loss and without batch
norm: RetinaNet divides by the number of anchors in each process, and Mask R-CNN samples its proposals.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.engine import HookBase
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList
from detectron2.utils import comm
from torch import nn

from pwlu_det.engine.trainer import Trainer


@META_ARCH_REGISTRY.register()
class Averaged(nn.Module):
    """Predicts the number of objects in an image from its features by linear regression."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.linear = nn.Linear(cfg.MODEL.FPN.OUT_CHANNELS, 1)

    def forward(self, inputs):
        images = ImageList.from_tensors([(x["image"] - 82.0) / 54.0 for x in inputs], 32).tensor
        pooled = sum(level.mean((2, 3)) for level in self.backbone(images).values())
        counts = torch.tensor([float(len(x["instances"])) for x in inputs])
        return {"loss": F.mse_loss(self.linear(pooled)[:, 0], counts)}


class Record(HookBase):
    def after_step(self):
        model = getattr(self.trainer.model, "module", self.trainer.model)
        file = f"rank{comm.get_rank()}_{self.trainer.iter}.pth"
        torch.save(model.state_dict(), os.path.join(self.trainer.cfg.OUTPUT_DIR, file))


def build_hooks(trainer, stock=Trainer.build_hooks):
    return [*stock(trainer), Record()]


Trainer.build_hooks = build_hooks

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
    from train_net import invoke_main  # not run as __main__: the processes must import this file as such

    sys.argv += ["MODEL.META_ARCHITECTURE", "Averaged", "MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN"]
    sys.argv += ["SOLVER.BASE_LR", "0.001"]
    invoke_main()
