"""An image classifier, with which backbones are pretrained."""

from __future__ import annotations

import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import nn
from torch.nn import functional as F


@META_ARCH_REGISTRY.register()
class Classifier(nn.Module):
    """A backbone, global average pooling and a linear layer: the classifier of detectron2's ``ResNet``.

    Input and pixel statistics are those of detectors, so that the backbone can become part of one.
    """

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        (self.feature,) = cfg.MODEL.CLASSIFIER.IN_FEATURES
        channels = self.backbone.output_shape()[self.feature].channels
        self.linear = nn.Linear(channels, cfg.MODEL.CLASSIFIER.NUM_CLASSES)
        nn.init.normal_(self.linear.weight, std=0.01)
        self.input_format = cfg.INPUT.FORMAT
        for name in ("pixel_mean", "pixel_std"):
            value = torch.tensor(cfg.MODEL[name.upper()]).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        """Classify images.

        Args:
            batched_inputs: dictionaries with an ``image``, ``[3, H, W]``, all of the same size, and in
                training a ``label``.

        Returns:
            In training, ``loss_cls``. Otherwise, for each image the ``scores`` of the classes, ``[K]``.
        """
        device = self.pixel_mean.device
        images = torch.stack([entry["image"].to(device) for entry in batched_inputs])
        features = self.backbone((images - self.pixel_mean) / self.pixel_std)[self.feature]
        logits = self.linear(features.mean((2, 3)))
        if self.training:
            labels = torch.tensor([entry["label"] for entry in batched_inputs], device=device)
            return {"loss_cls": F.cross_entropy(logits, labels)}
        return [{"scores": scores} for scores in logits.softmax(-1)]
