"""fvcore's counts, by itself and as detectron2's ``tools/analyze_model.py`` calls it."""

import fvcore.nn
import pytest
import torch
from detectron2.utils.analysis import FlopCountAnalysis, activation_count_operators, flop_count_operators
from torch import nn

from pwlu_det.activations import ACTIVATIONS, FReLU, build_activation

BATCH, CHANNELS, SIZE = 2, 6, 8
PIXELS = BATCH * CHANNELS * SIZE * SIZE


def network(activation):
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False), activation)


@pytest.fixture
def x():
    return torch.randn(BATCH, 3, SIZE, SIZE)


def own_ops(counts):
    return [name for name in counts if name.startswith("pwlu_det")]


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "maxout"])
def test_no_op_is_unsupported(name, training, x):
    model = network(build_activation(name, CHANNELS)).train(training)
    for analysis in fvcore.nn.FlopCountAnalysis(model, x), fvcore.nn.ActivationCountAnalysis(model, x):
        analysis.unsupported_ops_warnings(False)
        assert analysis.total() > 0 and own_ops(analysis.unsupported_ops()) == []
        if name == "pwlu":
            assert analysis.by_module()["1"] == 0


def test_frelu_counts_as_its_convolution_and_norm(x):
    model = network(FReLU(CHANNELS))
    first = 27 * PIXELS  # 3 x 3 x 3 for each output
    flops = fvcore.nn.FlopCountAnalysis(model, x).by_operator()
    assert dict(flops) == {"conv": first + 9 * PIXELS, "batch_norm": 5 * PIXELS}
    flops = fvcore.nn.FlopCountAnalysis(model.eval(), x)
    assert dict(flops.by_operator()) == {"conv": first + 9 * PIXELS, "batch_norm": 2 * PIXELS}
    assert flops.by_module()["1.conv"] == 9 * PIXELS
    activations = fvcore.nn.ActivationCountAnalysis(model, x)
    assert activations.total() == 2 * PIXELS and activations.by_module()["1"] == PIXELS


class Detector(nn.Module):
    """Takes detectron2's inputs."""

    def __init__(self, activation):
        super().__init__()
        self.network = network(activation)

    def forward(self, inputs):
        return self.network(torch.stack([sample["image"] for sample in inputs]))


def test_detectron2_s_analysis():
    inputs = [{"image": torch.randn(3, SIZE, SIZE)}]
    model, pixels = Detector(FReLU(CHANNELS)).eval(), PIXELS // BATCH
    analysis = FlopCountAnalysis(model, inputs)
    assert analysis.by_operator()["conv"] == 36 * pixels
    assert own_ops(analysis.unsupported_ops()) == []
    assert flop_count_operators(model, inputs)["conv"] == pytest.approx(36 * pixels / 1e9)
    assert activation_count_operators(model, inputs)["conv"] == pytest.approx(2 * pixels / 1e6)
