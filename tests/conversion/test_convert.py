"""convert_model(): every call site of any model gets its own activation, and starts as it was."""

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

import pwlu_det
from pwlu_det import PWLU, convert_model
from pwlu_det.errors import PwluDetError
from pwlu_det.ops import kernels_in_use

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def sites(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, PWLU)}


class Functional(nn.Module):
    """A tower that is applied to two maps, functions, a method, and a module on two lines."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 1)
        self.tower = nn.Sequential(nn.Conv2d(6, 6, 1), nn.LeakyReLU(0.2))
        self.act = nn.SiLU(inplace=True)

    def forward(self, x, skip=False):
        x = F.gelu(self.first(x))
        if skip:
            return torch.relu(x)
        y = self.act(self.second(x).relu_())
        y = self.act(y + x)
        torch.relu_(self.act(y.mean((2, 3))))  # both are kept
        return [self.tower(y), self.tower(F.avg_pool2d(y, 2)), F.relu(y.mean((2, 3)))]


def test_call_sites():
    torch.manual_seed(0)
    model = Functional()
    keys, random = set(model.state_dict()), torch.get_rng_state()
    before = model(X)
    _, report = convert_model(model, "pwlu", X, num_intervals=64)
    names = ["activation_sites.0", "activation_sites.1", "act.0", "act.1", "tower.1"]
    assert set(sites(model)) == set(names) == {site.name for site in report.replaced}
    assert [s.function for s in report.replaced] == ["gelu", "relu", "silu", "silu", "leaky_relu"]
    assert [site.function for site in report.kept] == ["silu", "relu", "relu"]
    assert all("min_map_size" in site.reason for site in report.kept)
    assert keys < set(model.state_dict()) and torch.equal(torch.get_rng_state(), random) and model.training
    for actual, expected in zip(model(X), before):
        torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.02)
    assert 0 < report.output_error < 0.01 and all(s.error < 0.02 for s in report.replaced)
    with pytest.raises(PwluDetError, match="example did not reach"):
        model(X, skip=True)
    with pytest.raises(PwluDetError, match="converted before"):
        convert_model(model, "pwlu", X)


def test_each_site_uses_its_own_activation():
    model = Functional()
    convert_model(model, "pwlu", X)
    for name, site in sites(model).items():
        before = model(X)
        with torch.no_grad():
            site.points += 1
        assert any(not torch.equal(a, b) for a, b in zip(model(X), before)), name


@pytest.mark.parametrize("network, number", [(resnet18, 17), (mobilenet_v3_small, 23)])
def test_networks(network, number):
    torch.manual_seed(0)
    model, x = network(num_classes=5), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model(x)  # so that the norms have statistics
    state = copy.deepcopy(model.state_dict())
    _, report = convert_model(model, "pwlu", x)
    assert len(sites(model)) == len(report.replaced) == number
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in state.items())
    own = sum(p.numel() for site in sites(model).values() for p in site.parameters())
    assert sum(p.numel() for p in model.parameters()) - own == sum(
        p.numel() for p in network(num_classes=5).parameters()
    )
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_fit_is_that_of_least_squares():
    """With NumPy, and features that are PWLUs with one parameter at 1 and all others at 0."""
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.BatchNorm1d(1, affine=False), nn.SiLU()).double(),
        torch.randn(1, 1, 3000).double(),
    )
    convert_model(model, "pwlu", x)
    site = model[1]
    z = model[0].eval()(x)[0, 0].detach().numpy()
    left, right = site.left_bound.item(), site.right_bound.item()
    assert abs(left - (z.mean() - 3 * z.std())) < 1e-5 and abs(right - (z.mean() + 3 * z.std())) < 1e-5
    knots = np.linspace(left, right, 17)
    columns = [np.interp(z, knots, row) for row in np.eye(17)]
    columns += [np.minimum(z - left, 0), np.maximum(z - right, 0)]
    best, *_ = np.linalg.lstsq(np.stack(columns, 1), z / (1 + np.exp(-z)), rcond=None)
    own = torch.cat([site.points[0], site.left_slope, site.right_slope]).detach().numpy()
    np.testing.assert_allclose(own, best, atol=1e-3)


def test_copies_and_files():
    torch.manual_seed(0)
    model, _ = convert_model(Functional(), "pwlu", X)
    expected = model(X)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    anew, _ = convert_model(Functional(), "pwlu", X)
    anew.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False), anew):
        assert all(map(torch.equal, other(X), expected))
        assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}


def test_channels_last():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    x = torch.randn(2, 9, 5)
    expected = model(x)
    _, report = convert_model(model, "pwlu", x, num_intervals=64)
    (site,) = report.replaced
    assert (site.channels, site.channel_dim) == (7, -1)
    torch.testing.assert_close(model(x), expected, rtol=0.01, atol=0.01)


class Permuted(nn.Module):
    def forward(self, x):
        return x.permute(0, 3, 1, 2).relu()


def test_unknown_channels_and_failures_leave_the_model():
    model = Permuted()
    with pytest.raises(PwluDetError, match=r"(?s)no activation to replace.*holds the channels is not known"):
        convert_model(model, "pwlu", X)
    assert type(model) is Permuted

    class InPlace(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            F.relu_(y)
            return y

    model = InPlace(4, 4, 1)
    expected = model(X)
    with pytest.raises(PwluDetError, match="not in place"):
        convert_model(model, "pwlu", X)
    assert type(model) is InPlace and torch.equal(model(X), expected)


def test_the_report_warns_of_another_start():
    model = nn.Sequential(nn.Conv2d(4, 6, 1), nn.SiLU(), nn.Conv2d(6, 6, 1), nn.ReLU())
    _, report = convert_model(model, "leaky_relu", X)
    assert "starts as leaky_relu, not as the silu" in report.sites[0].warning
    _, report = convert_model(nn.Sequential(nn.Conv2d(4, 6, 1), nn.SiLU()), "swish", X)
    assert not report.sites[0].warning
    assert pwlu_det.convert_model is convert_model


class ByHand(nn.Conv2d):
    def forward(self, x):
        x = super().forward(x)
        x = x * x.sigmoid() + F.threshold(x, 0, 0) + x.clamp(min=0) + x.clamp(0, 6)
        scale = x.mean((2, 3), keepdim=True).sigmoid()  # not an activation of x
        return F.relu(x * scale)


def test_activations_that_are_not_replaced_are_reported():
    _, report = convert_model(ByHand(4, 4, 1), "pwlu", X)
    assert [site.function for site in report.replaced] == ["relu"]
    assert [site.function for site in report.kept] == ["x * gate(x)", "threshold", "clamp"]
    assert all("not a function that is replaced" in site.reason for site in report.kept)


def test_any_failure_leaves_the_model():
    class Failing(nn.Sequential):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 3:  # the last call, with the new activations
                raise RuntimeError("out of memory")
            return super().forward(x)

    model = Failing(nn.Conv2d(4, 4, 1), nn.SiLU())
    with pytest.raises(RuntimeError, match="out of memory"):
        convert_model(model, "pwlu", X)
    assert type(model[1]) is nn.SiLU


def test_detections_are_compared():
    class Detector(nn.Sequential):
        def forward(self, x):
            y = super().forward(x)
            return [
                {"instances": Instances((8, 8), scores=y.flatten()[::4], pred_boxes=Boxes(y.reshape(-1, 4)))}
            ]

    torch.manual_seed(0)
    _, report = convert_model(Detector(nn.Conv2d(4, 4, 1), nn.SiLU()), "pwlu", X)
    assert 0 < report.output_error < 0.1


def test_fuse_norms_after_a_conversion():
    torch.manual_seed(0)
    model, _ = convert_model(resnet18(num_classes=5), "pwlu", torch.randn(2, 3, 64, 64))
    x = torch.randn(2, 3, 64, 64)
    expected = model.eval()(x)
    assert len(pwlu_det.fuse_norms(model, x)) == (20 if kernels_in_use() != "plain torch" else 0)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_inputs_are_sampled_from_all_columns():
    """Of maps whose width divides the number of pixels per sample, too."""
    torch.manual_seed(0)
    x = torch.randn(128, 4, 32, 32)
    x[..., 0] = 0  # as padding makes borders differ
    model = nn.Sequential(nn.Conv2d(4, 6, 1), nn.SiLU())
    expected = model(x)
    convert_model(model, "pwlu", x)
    assert (model(x) - expected).norm() < 0.02 * expected.norm()
