"""Replace the activations of detectron2's heads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.keypoint_head import KRCNNConvDeconvUpsampleHead
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import Tensor, nn

from pwlu_det.backbone.convert import Conversion, convert_block
from pwlu_det.backbone.placement import HEADS, POSITIONS
from pwlu_det.errors import PwluDetError

# The heads whose ReLUs are all modules or the `activation` of a Conv2d. These are the exact types, because a
# subclass may call ReLU in its forward.
_CONVERTIBLE = (
    RetinaNetHead,
    StandardRPNHead,
    FastRCNNConvFCHead,
    MaskRCNNConvUpsampleHead,
    KRCNNConvDeconvUpsampleHead,
    SemSegFPNHead,
)


class VectorActivation(nn.Module):
    """Applies an activation for ``[B, C, H, W]`` to the ``[B, C]`` output of a fully connected layer."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x[:, :, None, None]).flatten(1)


def convert_heads(
    model: nn.Module,
    build: Callable[[int], nn.Module],
    heads: Collection[str],
    positions: Collection[str] = POSITIONS,
) -> nn.Module:
    """Replace the ReLUs of a detector's heads with activation modules, in place.

    Each layer gets its own activation, with one function per output channel or unit of the layer. If a layer
    is applied to several feature levels, so is its activation. State-dict keys are only added, such as
    ``head.cls_subnet.1.points`` or ``roi_heads.mask_head.mask_fcn1.activation.points``.

    Args:
        model: a detector of detectron2.
        build: a function that takes the number of channels and returns an activation for ``[B, C, H, W]``.
        heads: the names of the heads, keys of :data:`pwlu_det.backbone.placement.HEADS`.
        positions: a subset of act1, act2 and act3, for the blocks of ``res5``. In all other heads, every ReLU
            is replaced.

    Returns:
        ``model`` itself.

    Raises:
        PwluDetError: the model lacks a head, or it has a type that cannot be converted or no ReLU. The model
            is then unchanged.
    """
    found = {name: find_head(model, name) for name in HEADS}
    missing = [name for name in heads if found.get(name) is None]
    if missing:
        there = ", ".join(name for name, head in found.items() if head is not None)
        raise PwluDetError(f"MODEL.ACTIVATION.HEADS: the model has no {', '.join(missing)}; it has {there}")
    conversions = []
    for name in heads:
        if name == "res5":
            parts = [convert_block(name, block, build, positions) for block in found[name]]
        else:
            parts = [part for head in _stages(found[name]) for part in _convert_head(name, head, build)]
        if not parts:
            raise PwluDetError(f"MODEL.ACTIVATION.HEADS: {name} has no ReLU to convert")
        conversions += parts
    for conversion in conversions:
        conversion.apply()
    return model


def find_head(model: nn.Module, name: str) -> nn.Module | None:
    """The head of a detector, or None if it has none of that name."""
    module = model
    for attribute in HEADS[name].split("."):
        module = getattr(module, attribute, None)
    return module


def _stages(head: nn.Module) -> list[nn.Module]:
    """The heads of a cascade, or the only one."""
    return list(head) if isinstance(head, nn.ModuleList) else [head]


def _convert_head(name: str, head: nn.Module, build: Callable) -> list[Conversion]:
    if type(head) not in _CONVERTIBLE:
        known = ", ".join(t.__name__ for t in _CONVERTIBLE)
        raise PwluDetError(
            f"MODEL.ACTIVATION.HEADS: {name} is a {type(head).__name__}, and only {known} and the res5 of "
            "Res5ROIHeads can be converted"
        )
    return [
        Conversion(module, {attribute: _activation_after(layer, build)}, type(module))
        for module, attribute, layer in _relus(head)
    ]


def _relus(head: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """The module and attribute that hold each ReLU, and the layer before it."""
    for module in head.modules():
        if isinstance(module, Conv2d):
            if isinstance(module.activation, nn.ReLU) or module.activation in (F.relu, F.relu_, torch.relu):
                yield module, "activation", module
            continue
        layer = None
        for attribute, child in module.named_children():
            if isinstance(child, nn.ReLU):
                yield module, attribute, layer
            elif isinstance(child, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                layer = child


def _activation_after(layer: nn.Module, build: Callable) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return VectorActivation(build(layer.out_features))
    return build(layer.out_channels)
