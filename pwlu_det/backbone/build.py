"""The registered backbone builders, which call detectron2's builders and convert the activations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from importlib import import_module

from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone, build_retinanet_resnet_fpn_backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from torch import nn

from pwlu_det.activations import registry
from pwlu_det.backbone.blocks import set_fusion
from pwlu_det.backbone.convert import RES5_IN_HEAD, convert_activations, sites_of
from pwlu_det.backbone.placement import STAGES, get_placement
from pwlu_det.config import activation_options, architecture, check_architecture
from pwlu_det.errors import ConfigError

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


@BACKBONE_REGISTRY.register()
def build_act_resnet_deeplab_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """``build_resnet_deeplab_backbone`` of DeepLab with the activation of ``cfg.MODEL.ACTIVATION``."""
    build = _builder_of_project("build_resnet_deeplab_backbone", "detectron2.projects.deeplab")
    return _convert(build(cfg, input_shape), cfg)


@BACKBONE_REGISTRY.register()
def build_act_trident_resnet_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """``build_trident_resnet_backbone`` of TridentNet with the activation of ``cfg.MODEL.ACTIVATION``."""
    build = _builder_of_project("build_trident_resnet_backbone", "tridentnet")
    return _convert(build(cfg, input_shape), cfg)


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


def _builder_of_project(name: str, module: str) -> Callable[..., Backbone]:
    """A builder that one of detectron2's projects registers when it is imported."""
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise ConfigError(
            f"MODEL.BACKBONE.NAME: {name.replace('build_', 'build_act_', 1)} needs detectron2's project "
            f"{module}, which cannot be imported: {error}"
        ) from error


def _convert(backbone: Backbone, cfg) -> Backbone:
    check_architecture(cfg)
    node = cfg.MODEL.ACTIVATION
    stages = get_placement(node.NAME).stages  # with relu, the sites that are not selected are ReLU, too
    if node.NAME != "relu":
        stages = node.STAGES or stages
        _warn_of_missing_sites(backbone, cfg, stages)
    if all(stage in node.HEADS for stage in stages):
        return backbone  # only the res5 in the head of a C4 model is to be converted
    convert_activations(
        backbone,
        build=partial(build_activation, cfg),
        stages=stages,
        positions=positions_of(cfg),
        num_frozen=cfg.MODEL.BACKBONE.FREEZE_AT,
        convert_frozen=node.CONVERT_FROZEN,
    )
    set_fusion(backbone, node.FUSE_NORM, node.FUSE_RELU)
    return backbone


def positions_of(cfg) -> Collection[str]:
    """The positions in each block: ``MODEL.ACTIVATION.POSITIONS``, or by default those of the authors."""
    node = cfg.MODEL.ACTIVATION
    placement = get_placement(node.NAME)
    basic = cfg.MODEL.RESNETS.DEPTH in (18, 34)
    return node.POSITIONS or (placement.positions_of_basic_blocks if basic else placement.positions)


def _warn_of_missing_sites(backbone: Backbone, cfg, stages: Collection[str]) -> None:
    node, sites = cfg.MODEL.ACTIVATION, sites_of(backbone)
    missing = [stage for stage in node.STAGES if stage not in sites and stage not in node.HEADS]
    if missing:
        logger.warning(
            f"MODEL.ACTIVATION.STAGES: the backbone has no {', '.join(missing)}; it has {', '.join(sites)}"
        )
    in_head = architecture(cfg) == "GeneralizedRCNN" and "Res5ROIHeads" in cfg.MODEL.ROI_HEADS.NAME
    if in_head and "res5" in stages and "res5" not in (*sites, *node.HEADS):
        logger.warning(RES5_IN_HEAD)
    frozen = STAGES[: cfg.MODEL.BACKBONE.FREEZE_AT]  # as FREEZE_AT counts
    kept = [stage for stage in node.STAGES if stage in frozen and not node.CONVERT_FROZEN]
    if kept:
        logger.warning(
            f"MODEL.ACTIVATION.STAGES: ReLU is kept in {', '.join(kept)}, frozen by "
            "MODEL.BACKBONE.FREEZE_AT, because MODEL.ACTIVATION.CONVERT_FROZEN is False"
        )
    there = {position for stage in stages for position in sites.get(stage, ())}
    missing = [position for position in node.POSITIONS if position not in there]
    if missing:
        logger.warning(
            f"MODEL.ACTIVATION.POSITIONS: the blocks of {', '.join(stages)} have no {', '.join(missing)}; "
            f"they have {', '.join(sorted(there))}"
        )
