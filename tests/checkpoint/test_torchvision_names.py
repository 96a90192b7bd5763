"""Weights of torchvision and timm load into any activation's backbone."""

import pytest
import timm
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from pwlu_det.checkpoint.checkpointer import Checkpointer


def networks():
    yield "torchvision", 18, lambda: torchvision.models.resnet18(weights=None)
    yield "torchvision", 50, lambda: torchvision.models.resnet50(weights=None)
    yield "timm", 18, lambda: timm.create_model("resnet18", pretrained=False)


@pytest.mark.parametrize("library, depth, make", networks())
@pytest.mark.parametrize("activation", ["relu", "swish"])
def test_resnet(cfg, tmp_path, caplog, library, depth, make, activation):
    torch.manual_seed(0)
    network, x = make(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network(x)  # so that the norms have statistics
    torch.save(network.eval().state_dict(), tmp_path / "weights.pth")
    cfg.MODEL.BACKBONE.NAME = "build_act_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = depth, "BN", False
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth == 18 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES, cfg.MODEL.ACTIVATION.NAME = ["res5"], activation
    backbone = build_backbone(cfg, ShapeSpec(3)).eval()
    with caplog.at_level("WARNING"):
        checkpointer = Checkpointer(backbone)
        checkpointer.load(str(tmp_path / "weights.pth"), checkpointables=[])
    assert not checkpointer.incompatible.missing_keys and not checkpointer.incompatible.unexpected_keys
    warned = "was trained with the activation relu, and this model has swish" in caplog.text
    assert warned == (activation == "swish")
    if activation == "relu":
        stages = torch.nn.Sequential(*list(network.children())[:-2])
        torch.testing.assert_close(backbone(x)["res5"], stages(x), rtol=1e-4, atol=1e-4)
