"""Models of torchvision and timm: the five of the PWLU paper, and more."""

import copy

import pytest
import timm
import torch
import torchvision

from pwlu_det import PWLU, convert_model

# The number of activations on maps larger than 1 x 1.
TORCHVISION = {
    **{"resnet18": 17, "resnet50": 49, "mobilenet_v2": 35, "mobilenet_v3_small": 23, "efficientnet_b0": 33},
    **{"mnasnet0_5": 35, "shufflenet_v2_x0_5": 37, "squeezenet1_1": 26, "regnet_y_400mf": 49, "swin_t": 12},
}
TIMM = {
    **{"mobilenetv3_small_050": 23, "ghostnet_050": 34, "resnet10t": 11, "convnext_atto": 12},
    **{"vit_tiny_patch16_224": 12},
}


def build(name):
    if name in TORCHVISION:
        return getattr(torchvision.models, name)(weights=None, num_classes=5)
    options = {"img_size": 64} if "vit" in name else {}
    return timm.create_model(name, pretrained=False, num_classes=5, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name, number", [*TORCHVISION.items(), *TIMM.items()])
def test_model(name, number):
    torch.manual_seed(0)
    model, x = build(name), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model(x)  # so that the norms have statistics
    state = copy.deepcopy(model.state_dict())
    count = sum(p.numel() for p in model.parameters())
    model, report = convert_model(model, "pwlu", x)
    sites = [m for m in model.modules() if isinstance(m, PWLU)]
    assert len(sites) == len(report.replaced) == number
    assert all("min_map_size" in site.reason for site in report.kept), str(report)
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in state.items())
    own = sum(p.numel() for site in sites for p in site.parameters())
    assert sum(p.numel() for p in model.parameters()) == count + own
    model.train()(x).sum().backward()
    assert all(p.grad is not None for site in sites for p in site.parameters())
    assert report.output_error < 0.5
