"""Models for inference, against the PWLU in NumPy; and torch's own exporters with every activation."""

import io

import numpy as np
import onnxruntime
import pytest
import torch
from detectron2.layers import Conv2d
from oracle import forward, from_function, per_function
from torch import nn

from pwlu_det import PWLU, build_activation
from pwlu_det.activations.registry import ACTIVATIONS
from pwlu_det.conversion.inference import PiecewiseLinear, for_inference

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
NAMES = [name for name in ACTIVATIONS if name != "maxout"]


def learned(channel_wise=True, center=0.0, width=6.0, slope=1.0):
    torch.manual_seed(1)
    site = PWLU(3, num_intervals=5, channel_wise=channel_wise)
    with torch.no_grad():
        site.left_bound.fill_(center - width / 2)
        site.right_bound.copy_(site.left_bound + width * torch.linspace(0.7, 1.3, len(site.points)))
        site.points.normal_(std=slope * width)
        site.left_slope.normal_()
        site.right_slope.normal_()
    return site


@pytest.mark.parametrize("channel_wise", [True, False])
@pytest.mark.parametrize("center, width, slope, local", [(0, 6, 1, False), (300, 0.01, 50, True)])
def test_piecewise_linear(channel_wise, center, width, slope, local):
    site = learned(channel_wise, center, width, slope)
    module = PiecewiseLinear(site)
    assert module.local == local
    x = center + width * X
    expected = from_function(
        forward(
            per_function(x.numpy(), len(site.points)),
            *(p.detach().double().numpy() for p in site._parameter_list()),
        ),
        x.shape,
    )
    difference = np.abs(module(x).numpy() - expected).max()
    assert difference <= 2e-6 * np.abs(expected).max()


def test_norms_are_folded():
    torch.manual_seed(0)
    model = nn.Sequential(Conv2d(3, 8, 3, norm=nn.BatchNorm2d(8)), build_activation("frelu", 8), PWLU(8))
    for norm in (model[0].norm, model[1].norm):
        for tensor in (norm.weight, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 2)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    folded = for_inference(model)
    assert model.training and all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(isinstance(m, (nn.BatchNorm2d, PWLU)) for m in folded.modules())
    torch.testing.assert_close(folded(X), model.eval()(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dynamo", [False, True])
def test_torchs_own_exporters(name, dynamo):
    """As detectron2's tests of exports do with ReLU: ONNX by either exporter."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), build_activation(name, 4), nn.Conv2d(4, 2, 1)
    model, file = nn.Sequential(*layers).eval(), io.BytesIO()
    torch.onnx.export(model, (X,), file, dynamo=dynamo, opset_version=18, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    expected = model(X).detach()
    assert (torch.from_numpy(actual) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["pwlu", "acon_c", "frelu", "pau", "apl"])
def test_tracing(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), build_activation(name, 4)).eval()
    with torch.no_grad():
        expected = model(X)
        assert torch.equal(torch.jit.trace(model, X)(X), expected)
        assert torch.equal(torch.fx.symbolic_trace(model)(X), expected)
