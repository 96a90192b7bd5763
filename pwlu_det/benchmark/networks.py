"""The image classifiers of the PWLU paper's Table 4, from torchvision, with other activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small, resnet18
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops.misc import Conv2dNormActivation

from pwlu_det.activations import build_activation, fuse_norms
from pwlu_det.benchmark.models import LEARNING_RATE, Trainee

NETWORKS = {"resnet18": resnet18, "mobilenet_v3_small": mobilenet_v3_small}
"""The paper's MobileNetV3 has 56 MFLOPs and 2.6 M parameters, so it is the small variant."""

AS_PUBLISHED = "as published"
"""Name of the row with the network's original activations (MobileNetV3 has ReLU and h-swish)."""


def network(
    name: str, activation: str, fuse: bool, batch: int, height: int, width: int, device: str
) -> Trainee:
    """Build a classifier with random weights, noise images, and the paper's optimizer (SGD, momentum 0.9).

    ``fuse`` says whether norms and activations, including ReLU, are one op.

    Raises:
        ValueError: the network or the activation is unknown.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network '{name}'; it must be one of {', '.join(NETWORKS)}")
    torch.manual_seed(0)
    net = NETWORKS[name]()
    if activation != AS_PUBLISHED:
        convert(net, lambda num_channels: _build(activation, num_channels))
    model = _Classifier(net).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(batch, 3, height, width, device=device)
    if fuse:
        fuse_norms(net, images[:1], fuse_relu=True)
    labels = torch.randint(1000, (batch,), device=device)
    return Trainee(model, optimizer, (images, labels))


def convert(net: nn.Module, build: Callable[[int], nn.Module]) -> None:
    """Replace a network's activations, except those on tiny feature maps (section 4.1 of the paper).

    These are the activations in squeeze-and-excitation blocks and in the classifier, on 1 x 1 pixels.
    """
    if isinstance(net, ResNet):
        net.relu = build(net.bn1.num_features)
        for block in net.modules():
            if type(block) is BasicBlock:
                block.act1, block.act2 = (build(block.bn1.num_features) for _ in range(2))
                del block.relu
                block.__class__ = _ActBasicBlock
        return
    # The activations of squeeze-and-excitation blocks are not in Conv2dNormActivation.
    for layer in net.features.modules():
        if isinstance(layer, Conv2dNormActivation) and isinstance(layer[-1], (nn.ReLU, nn.Hardswish)):
            layer[-1] = build(layer[0].out_channels)


def _build(activation: str, num_channels: int) -> nn.Module:
    module = build_activation(activation, num_channels)
    if isinstance(module, nn.ReLU):
        module.inplace = True  # as in torchvision
    return module


class _ActBasicBlock(BasicBlock):
    """A block with two activations; torchvision's calls the same ReLU twice."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.act2(out)


class _Classifier(nn.Module):
    """Returns losses in training, as detectron2's models do."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, inputs: tuple[Tensor, Tensor]) -> dict[str, Tensor] | Tensor:
        images, labels = inputs
        scores = self.net(images)
        return {"loss": F.cross_entropy(scores, labels)} if self.training else scores
