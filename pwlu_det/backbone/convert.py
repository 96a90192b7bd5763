"""Replace the activations of a ResNet, with or without FPN, built by detectron2."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
    ResNet,
)
from torch import nn

from pwlu_det.backbone.blocks import (
    ActBasicBlock,
    ActBasicStem,
    ActBottleneckBlock,
    ActDeformBottleneckBlock,
    ActLastLevelP6P7,
)

# For each block type: its converted class, and the convolution before each activation site. Keyed on the
# exact type, because a subclass may override forward.
_CONVERSIONS: dict[type, tuple[type, dict[str, str]]] = {
    BasicStem: (ActBasicStem, {"act1": "conv1"}),
    BasicBlock: (ActBasicBlock, {"act1": "conv1", "act2": "conv2"}),
    BottleneckBlock: (ActBottleneckBlock, {"act1": "conv1", "act2": "conv2", "act3": "conv3"}),
    DeformBottleneckBlock: (ActDeformBottleneckBlock, {"act1": "conv1", "act2": "conv2", "act3": "conv3"}),
    LastLevelP6P7: (ActLastLevelP6P7, {"act": "p6"}),
}


def convert_activations(
    backbone: nn.Module,
    build: Callable[[int], nn.Module],
    stages: Collection[str],
    positions: Collection[str],
    num_frozen: int = 0,
    convert_frozen: bool = False,
) -> nn.Module:
    """Replace the inline ReLUs of a ResNet or FPN with activation modules, in place.

    State-dict keys are only added (``res2.0.act1.points``, ``top_block.act.points``), so weights of the
    stock model still load. Sites that are not selected keep ReLU.

    Args:
        backbone: a detectron2 ``ResNet``, or an ``FPN`` on top of one.
        build: a function that takes the number of channels and returns an activation.
        stages: a subset of stem, res2, res3, res4, res5 and top (``LastLevelP6P7``).
        positions: a subset of act1, act2 and act3; the only site of stem and that of top count as act1.
        num_frozen: ``FREEZE_AT``: stem is stage 1, res2 is stage 2, and so on.
        convert_frozen: also convert the frozen stages; the parameters of their activations are frozen.

    Returns:
        ``backbone`` itself.

    Raises:
        ValueError: a stem, block or top block has a type that cannot be converted, or there is no ResNet.
    """
    for number, stage, block in _enumerate_blocks(backbone):
        frozen = number <= num_frozen
        if stage not in stages or (frozen and not convert_frozen):
            continue
        if type(block) not in _CONVERSIONS:
            known = ", ".join(t.__name__ for t in _CONVERSIONS)
            raise ValueError(
                f"cannot convert the activations of {stage}: it has a {type(block).__name__}, and only "
                f"{known} can be converted. Leave {stage} out of MODEL.ACTIVATION.STAGES to keep its ReLUs."
            )
        _convert_block(block, build, positions, frozen)
    return backbone


def _enumerate_blocks(backbone: nn.Module) -> Iterator[tuple[int, str, nn.Module]]:
    """Stage number (as FREEZE_AT counts), stage name and block, from stem to top."""
    resnet = backbone.bottom_up if isinstance(backbone, FPN) else backbone
    if not isinstance(resnet, ResNet):
        raise ValueError(f"cannot convert the activations of a {type(resnet).__name__}; it must be a ResNet")
    yield 1, "stem", resnet.stem
    for number, name in enumerate(resnet.stage_names, start=2):
        for block in getattr(resnet, name):
            yield number, name, block
    top_block = getattr(backbone, "top_block", None)
    if isinstance(top_block, LastLevelP6P7):
        yield 6, "top", top_block


def _convert_block(block: nn.Module, build: Callable, positions: Collection[str], frozen: bool) -> None:
    converted, sites = _CONVERSIONS[type(block)]
    for site, conv in sites.items():
        position = "act1" if site == "act" else site
        activation = build(getattr(block, conv).out_channels) if position in positions else nn.ReLU()
        if isinstance(activation, nn.ReLU):
            activation.inplace = converted is not ActLastLevelP6P7  # P6 is also an output
        if frozen:
            activation.requires_grad_(False)
            FrozenBatchNorm2d.convert_frozen_batchnorm(activation)  # as detectron2 does in frozen blocks
        activation.train(block.training)
        block.add_module(site, activation)
    block.__class__ = converted
