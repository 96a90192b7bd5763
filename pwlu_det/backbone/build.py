"""The registered backbone builders: detectron2's own, then a change of activations."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone, build_retinanet_resnet_fpn_backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone

from pwlu_det.activations.registry import build_activation, get_family_for_resnet
from pwlu_det.backbone.convert import convert_activations


@BACKBONE_REGISTRY.register()
def build_act_resnet_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """``build_resnet_backbone`` with the activation of ``cfg.MODEL.ACTIVATION``."""
    return _convert(build_resnet_backbone(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_act_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """``build_resnet_fpn_backbone`` with the activation of ``cfg.MODEL.ACTIVATION``."""
    return _convert(build_resnet_fpn_backbone(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_act_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """``build_retinanet_resnet_fpn_backbone`` with the activation of ``cfg.MODEL.ACTIVATION``."""
    return _convert(build_retinanet_resnet_fpn_backbone(cfg, input_shape), cfg)


def _convert(backbone: Backbone, cfg) -> Backbone:
    node = cfg.MODEL.ACTIVATION
    family = get_family_for_resnet(node.NAME)
    basic = cfg.MODEL.RESNETS.DEPTH in (18, 34)
    return convert_activations(
        backbone,
        build=lambda num_channels: build_activation(cfg, num_channels),
        stages=node.STAGES or family.stages,
        positions=node.POSITIONS or (family.positions_of_basic_blocks if basic else family.positions),
        num_frozen=cfg.MODEL.BACKBONE.FREEZE_AT,
        convert_frozen=node.CONVERT_FROZEN,
    )
