"""Replace the activations of a ResNet, with or without FPN, built by detectron2."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import import_module

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
from pwlu_det.errors import PwluDetError

# For each block type: its converted class, and the convolution before each activation site. Keyed on the
# exact type, because a subclass may override forward.
_BLOCKS: dict[type, tuple[type, dict[str, str]]] = {
    BasicStem: (ActBasicStem, {"act1": "conv1"}),
    BasicBlock: (ActBasicBlock, {"act1": "conv1", "act2": "conv2"}),
    BottleneckBlock: (ActBottleneckBlock, {"act1": "conv1", "act2": "conv2", "act3": "conv3"}),
    DeformBottleneckBlock: (ActDeformBottleneckBlock, {"act1": "conv1", "act2": "conv2", "act3": "conv3"}),
    LastLevelP6P7: (ActLastLevelP6P7, {"act": "p6"}),
}
# Modules of detectron2's projects, which need not be installed, and our module with the same table for the
# blocks that they define.
_PROJECTS = {
    "detectron2.projects.deeplab.resnet": "pwlu_det.backbone.deeplab",
    "tridentnet.trident_backbone": "pwlu_det.backbone.trident",
}

RES5_IN_HEAD = (
    "The res5 of a C4 model is in its head: add 'res5' to MODEL.ACTIVATION.HEADS to replace its ReLUs, too"
)


@dataclass
class Conversion:
    """New activations for a module, not yet in it."""

    module: nn.Module
    activations: dict[str, nn.Module]
    """by attribute of ``module``"""
    new_class: type
    """The class of ``module`` that uses them."""

    def __post_init__(self):
        for activation in self.activations.values():
            if not isinstance(activation, nn.Module):
                raise PwluDetError(f"build has returned {activation!r}; it must return a module")

    def apply(self) -> None:
        for name, activation in self.activations.items():
            setattr(self.module, name, activation.train(self.module.training))
        self.module.__class__ = self.new_class


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
        PwluDetError: a stem, block or top block has a type that cannot be converted, there is no ResNet, or
            no site is selected. The backbone is then unchanged.
    """
    blocks = list(_enumerate_blocks(backbone))
    chosen = [(stage, block, n <= num_frozen) for n, stage, block in blocks if stage in stages]
    chosen = [(stage, block, frozen) for stage, block, frozen in chosen if convert_frozen or not frozen]
    # All activations are built before the first block is changed: an error leaves the backbone as it was.
    conversions = [convert_block(stage, block, build, positions, frozen) for stage, block, frozen in chosen]
    if not any(position in positions for _, block, _ in chosen for position in _positions_of(block)):
        raise PwluDetError(
            f"no activation is converted: stages {list(stages)} and positions {list(positions)} have no "
            f"site that is not frozen. The backbone has {_describe(blocks)}; its first {num_frozen} stages "
            "are frozen" + (f". {RES5_IN_HEAD}" if "res5" in stages else "")
        )
    for conversion in conversions:
        conversion.apply()
    return backbone


def sites_of(backbone: nn.Module) -> dict[str, list[str]]:
    """The stages that a ``ResNet`` or ``FPN`` has, and the positions in the blocks of each."""
    return {stage: _positions_of(block) for _, stage, block in _enumerate_blocks(backbone)}


def _enumerate_blocks(backbone: nn.Module) -> Iterator[tuple[int, str, nn.Module]]:
    """Stage number (as FREEZE_AT counts), stage name and block, from stem to top."""
    resnet = backbone.bottom_up if isinstance(backbone, FPN) else backbone
    if not isinstance(resnet, ResNet):
        raise PwluDetError(
            f"cannot convert the activations of a {type(resnet).__module__}.{type(resnet).__qualname__}; it "
            "must be detectron2's ResNet, with or without its FPN"
        )
    yield 1, "stem", resnet.stem
    for number, name in enumerate(resnet.stage_names, start=2):
        for block in getattr(resnet, name):
            yield number, name, block
    top_block = getattr(backbone, "top_block", None)
    if isinstance(top_block, LastLevelP6P7):
        yield 6, "top", top_block


def _find_conversion(block: nn.Module) -> tuple[type | None, dict[str, str]]:
    """The converted class of a block, and the convolution before each site; (None, {}) if unknown."""
    project = _PROJECTS.get(type(block).__module__)
    blocks = import_module(project).BLOCKS if project else _BLOCKS
    return blocks.get(type(block), (None, {}))


def _positions_of(block: nn.Module) -> list[str]:
    """The positions of a block's sites; the only site of P6P7 counts as act1."""
    return ["act1" if site == "act" else site for site in _find_conversion(block)[1]]


def _describe(blocks: list[tuple[int, str, nn.Module]]) -> str:
    stages = {stage: block for _, stage, block in blocks}
    return ", ".join(f"{stage} ({type(block).__name__})" for stage, block in stages.items())


def convert_block(
    stage: str, block: nn.Module, build: Callable, positions: Collection[str], frozen: bool = False
) -> Conversion:
    """Build the activations of one block.

    Raises:
        PwluDetError: the block has a type that cannot be converted.
    """
    new_class, convolutions = _find_conversion(block)
    if new_class is None:
        known = ", ".join(t.__name__ for t in _BLOCKS)
        raise PwluDetError(
            f"cannot convert the activations of {stage}: it has a {type(block).__name__}, and only "
            f"{known} and the blocks of DeepLab and TridentNet can be converted. Leave {stage} out of "
            "MODEL.ACTIVATION.STAGES and HEADS to keep its ReLUs."
        )
    activations = {}
    for (site, conv), position in zip(convolutions.items(), _positions_of(block)):
        activation = build(getattr(block, conv).out_channels) if position in positions else nn.ReLU()
        if isinstance(activation, nn.ReLU):
            activation.inplace = not isinstance(block, LastLevelP6P7)  # P6 is also an output
        if frozen:
            activation.requires_grad_(False)
            FrozenBatchNorm2d.convert_frozen_batchnorm(activation)  # as detectron2 does in frozen blocks
        activations[site] = activation
    return Conversion(block, activations, new_class)
