"""detectron2's architectures with the activation of ``MODEL.ACTIVATION`` also in the heads of ``HEADS``."""

from __future__ import annotations

from functools import partial

from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import (
    GeneralizedRCNN,
    PanopticFPN,
    ProposalNetwork,
    RetinaNet,
    SemanticSegmentor,
)

from pwlu_det.backbone.blocks import set_fusion
from pwlu_det.backbone.build import build_activation, positions_of
from pwlu_det.backbone.heads import convert_heads


class _ConvertsHeads:
    """Converts the heads after the model has been built from a config."""

    def __init__(self, cfg):
        super().__init__(cfg)
        node = cfg.MODEL.ACTIVATION
        if node.NAME != "relu":
            convert_heads(self, partial(build_activation, cfg), node.HEADS, positions_of(cfg))
            set_fusion(self, node.FUSE_NORM, node.FUSE_RELU)


@META_ARCH_REGISTRY.register()
class ActRetinaNet(_ConvertsHeads, RetinaNet):
    pass


@META_ARCH_REGISTRY.register()
class ActGeneralizedRCNN(_ConvertsHeads, GeneralizedRCNN):
    pass


@META_ARCH_REGISTRY.register()
class ActProposalNetwork(_ConvertsHeads, ProposalNetwork):
    pass


@META_ARCH_REGISTRY.register()
class ActSemanticSegmentor(_ConvertsHeads, SemanticSegmentor):
    pass


@META_ARCH_REGISTRY.register()
class ActPanopticFPN(_ConvertsHeads, PanopticFPN):
    pass
