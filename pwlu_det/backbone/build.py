"""The registered backbone builders, which call detectron2's builders and convert the activations."""

from __future__ import annotations

import logging
from functools import partial

from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone, build_retinanet_resnet_fpn_backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import nn

from pwlu_det.activations import registry
from pwlu_det.backbone.convert import convert_activations, stages_of
from pwlu_det.backbone.placement import get_placement
from pwlu_det.config import activation_options

logger = logging.getLogger(f"detectron2.{__name__}")


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


def build_activation(cfg_or_name, num_channels: int) -> nn.Module:
    """Build an activation for ``[B, num_channels, *]``.

    Args:
        cfg_or_name: a config, or a name such as ``"pwlu"``. A name is passed to
            :func:`pwlu_det.activations.build_activation`; a PWLU is then an ordinary module, in phase II.
            With a config, ``MODEL.ACTIVATION`` determines the name and the options, and
            ``MODEL.RESNETS.NORM`` the norms inside the activation; a PWLU with ``REALIGN`` starts in phase I.
        num_channels: number of output channels. The input has as many, or twice as many for ``"maxout"``.

    Raises:
        PwluDetError: the name is unknown, or an option is out of range.
    """
    if isinstance(cfg_or_name, str):
        return registry.build_activation(cfg_or_name, num_channels)
    node = cfg_or_name.MODEL.ACTIVATION
    options = activation_options(cfg_or_name)
    if registry.takes_norm(node.NAME):
        options["norm"] = partial(_build_norm, cfg_or_name.MODEL.RESNETS.NORM)
    activation = registry.build_activation(node.NAME, num_channels, **options)
    if node.NAME == "pwlu" and node.PWLU.REALIGN:
        activation.begin_collecting()
        activation.expects_hook = True
    return activation


def _build_norm(name: str, num_channels: int) -> nn.Module:
    return get_norm(name, num_channels) or nn.Identity()


def _convert(backbone: Backbone, cfg) -> Backbone:
    node = cfg.MODEL.ACTIVATION
    placement = get_placement(node.NAME)
    basic = cfg.MODEL.RESNETS.DEPTH in (18, 34)
    positions = placement.positions_of_basic_blocks if basic else placement.positions
    stages = node.STAGES or placement.stages
    if node.NAME == "relu":  # the sites that are not selected are ReLU, too
        stages = placement.stages
    _warn_of_missing_stages(backbone, node)
    return convert_activations(
        backbone,
        build=partial(build_activation, cfg),
        stages=stages,
        positions=node.POSITIONS or positions,
        num_frozen=cfg.MODEL.BACKBONE.FREEZE_AT,
        convert_frozen=node.CONVERT_FROZEN,
    )


def _warn_of_missing_stages(backbone: Backbone, node) -> None:
    there = stages_of(backbone)
    missing = [stage for stage in node.STAGES if stage not in there]
    if missing:
        logger.warning(
            f"MODEL.ACTIVATION.STAGES: the backbone has no {', '.join(missing)}; it has {', '.join(there)}"
        )
