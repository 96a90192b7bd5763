"""Small detectors and inputs shared by several tests."""

from __future__ import annotations

import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

STOCK = {
    "resnet": "build_resnet_backbone",
    "fpn": "build_resnet_fpn_backbone",
    "retinanet": "build_retinanet_resnet_fpn_backbone",
}
CONVERTED = {kind: name.replace("build_", "build_act_") for kind, name in STOCK.items()}


def set_detector(cfg, kind: str, depth: int = 18, norm: str = "BN") -> None:
    """Make ``cfg`` a small "retinanet" or "mask_rcnn" with a converted backbone."""
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.NORM = depth, norm
    resnets.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 64
    if kind == "retinanet":
        cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
        cfg.MODEL.BACKBONE.NAME = CONVERTED["retinanet"]
        resnets.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
        cfg.MODEL.RETINANET.NUM_CONVS = 1
        return
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = CONVERTED["fpn"]
    resnets.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 30
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 1, 16


def build(cfg, seed: int = 0) -> nn.Module:
    """A detector whose random initialization depends only on ``seed``."""
    torch.manual_seed(seed)
    return build_model(cfg)


def batch(size: int = 64, images: int = 2) -> list[dict]:
    """A training batch of random images with two objects each."""
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for _ in range(images):
        instances = Instances((size, size))
        boxes = torch.tensor([[4.0, 4, 40, 36], [20, 24, 60, 60]])
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.tensor([1, 3])
        masks = torch.zeros(2, size, size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
            mask[y0:y1, x0:x1] = True
        instances.gt_masks = BitMasks(masks)
        image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "instances": instances, "height": size, "width": size})
    return inputs


def losses_and_gradients(model: nn.Module) -> tuple[dict, dict]:
    """Losses of one training forward, and the gradient of each parameter."""
    model.train()
    model.zero_grad()
    torch.manual_seed(2)  # R-CNN samples proposals
    with EventStorage():
        losses = model(batch())
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}
