"""Mask R-CNN R-50-FPN with PWLU, from scratch."""

from detectron2 import model_zoo

from .common import activation, dataloader, lr_multiplier, optimizer, train  # noqa: F401

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up.stages.norm = model.backbone.bottom_up.stem.norm = "BN"
dataloader.train.mapper.use_instance_mask = True
