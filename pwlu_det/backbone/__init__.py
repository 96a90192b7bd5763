"""Backbones, heads and architectures. Importing this package registers them with detectron2."""

from pwlu_det.backbone import classifier, meta_arch
from pwlu_det.backbone.build import (
    build_act_resnet_backbone,
    build_act_resnet_deeplab_backbone,
    build_act_resnet_fpn_backbone,
    build_act_retinanet_resnet_fpn_backbone,
    build_act_trident_resnet_backbone,
    build_activation,
)
from pwlu_det.backbone.convert import convert_activations
from pwlu_det.backbone.heads import convert_heads

__all__ = [
    "build_act_resnet_backbone",
    "build_act_resnet_deeplab_backbone",
    "build_act_resnet_fpn_backbone",
    "build_act_retinanet_resnet_fpn_backbone",
    "build_act_trident_resnet_backbone",
    "build_activation",
    "classifier",
    "convert_activations",
    "convert_heads",
    "meta_arch",
]
