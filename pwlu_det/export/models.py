"""What is exported: functions of normalized images with named results."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import RetinaNet
from torch import Tensor, nn

from pwlu_det.errors import CheckpointError


class NamedOutputs(nn.Module):
    """A backbone, ``[B, 3, H, W]`` to its feature maps in order."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    @property
    def multiple(self) -> int:
        """What the height and width of images must be multiples of."""
        return self.backbone.size_divisibility or self._largest_stride

    @property
    def smallest(self) -> int:
        """The smallest height and width: no map has size 1, which torch.export would take for constant."""
        return (self._largest_stride // self.multiple + 1) * self.multiple

    @property
    def _largest_stride(self) -> int:
        return max(shape.stride for shape in self.backbone.output_shape().values())

    def shapes(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each output, in order."""
        return self.backbone.output_shape()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.backbone(images)


class RawRetinaNet(NamedOutputs):
    """A RetinaNet up to its head: logits, ``[B, A K, H, W]``, and box deltas, ``[B, A 4, H, W]``."""

    def __init__(self, model: RetinaNet):
        super().__init__(model.backbone)
        self.head, self.features = model.head, model.head_in_features

    def shapes(self) -> dict[str, ShapeSpec]:
        strides = {name: shape.stride for name, shape in super().shapes().items()}
        layers = {"logits": self.head.cls_score, "deltas": self.head.bbox_pred}
        return {
            f"{kind}_{name}": ShapeSpec(layer.out_channels, stride=strides[name])
            for kind, layer in layers.items()
            for name in self.features
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(images)
        logits, deltas = self.head([maps[name] for name in self.features])
        named = {f"logits_{name}": value for name, value in zip(self.features, logits)}
        return {**named, **{f"deltas_{name}": value for name, value in zip(self.features, deltas)}}


def part_of(model: nn.Module, heads: bool) -> NamedOutputs:
    """The part of a detector or classifier that is exported.

    Raises:
        CheckpointError: ``heads`` is set, and the model is not a RetinaNet.
    """
    if not heads:
        return NamedOutputs(model.backbone)
    if not isinstance(model, RetinaNet):
        raise CheckpointError(
            f"--heads: the model is a {type(model).__name__}; only RetinaNet's can be exported"
        )
    return RawRetinaNet(model)
