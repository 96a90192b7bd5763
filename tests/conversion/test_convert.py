"""convert_model(): every call site of any model gets its own activation, and starts as it was."""

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

import pwlu_det
from pwlu_det import PWLU, convert_model
from pwlu_det.errors import PwluDetError

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
