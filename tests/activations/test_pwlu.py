import copy
import io
import pickle

import numpy as np
import oracle
import pytest
import torch
from torch import nn

from pwlu_det.activations import PWLU
from pwlu_det.activations.pwlu import COLLECTING, LEARNING

PARAMETERS = {"points", "left_bound", "right_bound", "left_slope", "right_slope"}
# Statistics, and values derived from them, are computed in float32.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}

layer_or_channel_wise = pytest.mark.parametrize(
    "channel_wise", [True, False], ids=["channel-wise", "layer-wise"]
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def collecting_site(*args, **options) -> PWLU:
    site = PWLU(*args, **options)
    site.begin_collecting()
    return site


def batches(number=3, dtype=torch.float32):
    """The same batches on each call; mean and spread differ between channels and between batches."""
    random = torch.Generator().manual_seed(1)
    mean, width = torch.tensor([[[-2.0], [0.5], [3.0]], [[0.3], [4.0], [2.0]]])[..., None]
    noise = (torch.randn(2 + i, 3, 4, 5, generator=random) * (1 + i) for i in range(number))
    return [(x * width + mean * (2 - i)).to(dtype) for i, x in enumerate(noise)]


def trained_site(**options) -> PWLU:
    """A site in phase II, with every parameter moved from its initial value."""
    site = collecting_site(3, 8, **options)
    for x in batches():
        site(x)
    site.realign()
    with torch.no_grad():
        for parameter in site.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.1)
    return site


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same_state(actual: nn.Module, expected):
    expected = snapshot(expected) if isinstance(expected, nn.Module) else expected
    assert actual.state_dict().keys() == expected.keys()
    for name, tensor in actual.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def assert_statistics(site: PWLU, inputs, momentum=0.9):
    mu, sigma = oracle.running(
        [x.detach().double().numpy() for x in inputs], site.running_mean.numel(), momentum
    )
    np.testing.assert_allclose(site.running_mean.numpy(), mu, **CLOSE)
    np.testing.assert_allclose(site.running_std.numpy(), sigma, **CLOSE)
    assert site.num_batches == len(inputs)


# --- phase I ------------------------------------------------------------------------------------


@layer_or_channel_wise
@pytest.mark.parametrize("momentum", [0.9, 0.5, 0.0])
def test_training_forwards_follow_equation_5(momentum, channel_wise):
    site = collecting_site(3, channel_wise=channel_wise, stat_momentum=momentum)
    inputs = batches(4)
    for i, x in enumerate(inputs):
        assert torch.equal(site(x), x.relu())
        assert_statistics(site, inputs[: i + 1], momentum)
    assert site.running_mean.shape == ((3,) if channel_wise else (1,))


def test_statistics_of_low_precision_input_are_float32():
    inputs = batches(dtype=torch.bfloat16)
    site = collecting_site(3)
    for x in inputs:
        assert site(x).dtype == torch.bfloat16
    assert site.running_mean.dtype == site.running_std.dtype == torch.float32
    assert_statistics(site, inputs)


FORWARDS = {
    "evaluation": lambda site, x: site.eval()(x),
    "no_grad": torch.no_grad()(lambda site, x: site(x)),
    "inference_mode": torch.inference_mode()(lambda site, x: site(x)),
    "frozen": lambda site, x: site.requires_grad_(False)(x),
}


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_only_training_collects_statistics(forward):
    site, inputs = collecting_site(3), batches()
    site(inputs[0])
    before = snapshot(site)
    torch.testing.assert_close(forward(site, inputs[1]), inputs[1].relu(), rtol=1e-6, atol=1e-6)
    assert_same_state(site, before)


def test_an_empty_batch_does_not_count():
    site, inputs = collecting_site(3), batches()
    for x in (torch.empty(0, 3, 4, 4), inputs[0], torch.empty(2, 3, 0), inputs[1]):
        assert site(x).shape == x.shape
    assert_statistics(site, inputs[:2])


def test_phase_2_collects_nothing():
    site = trained_site()
    before = snapshot(site)
    site(batches()[0])
    assert_same_state(site, before)


def test_begin_collecting_resets_the_statistics():
    site, inputs = trained_site(), batches()
    site.begin_collecting()
    assert site.collecting and site.phase == COLLECTING and site.num_batches == 0
    site(inputs[2])
    assert_statistics(site, [inputs[2]])


def test_phase_1_parameters_are_in_the_graph_but_do_not_change():
    site = collecting_site(3)
    net = nn.Sequential(nn.Conv2d(3, 3, 1), site, nn.Conv2d(3, 1, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    before, convolution = snapshot(site), net[0].weight.clone()
    for x in batches():
        optimizer.zero_grad()
        net(x).square().mean().backward()
        for name, parameter in site.named_parameters():
            assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name
            parameter.grad = None
        optimizer.step()
    for name in PARAMETERS:
        assert torch.equal(getattr(site, name), before[name]), name
    assert not torch.equal(net[0].weight, convolution)
    assert site.num_batches == 3


# --- the switch to phase II ---------------------------------------------------------------------


@layer_or_channel_wise
@pytest.mark.parametrize("n, num_sigma", [(16, 3.0), (5, 3.0), (8, 2.0)])
def test_realign_follows_equation_6(n, num_sigma, channel_wise):
    site = collecting_site(3, n, channel_wise, num_sigma=num_sigma)
    inputs = batches()
    for x in inputs:
        site(x)
    mean, std = site.running_mean.clone(), site.running_std.clone()
    site.realign()
    expected = oracle.realigned(mean.double().numpy(), std.double().numpy(), n, num_sigma)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(site, name).detach().numpy(), value, **CLOSE, err_msg=name)
    assert not site.collecting and site.phase == LEARNING
    assert torch.equal(site.running_mean, mean) and torch.equal(site.running_std, std)


def test_realign_is_in_place():
    site = collecting_site(3)
    before = dict(site.named_parameters())
    address = {name: parameter.data_ptr() for name, parameter in before.items()}
    site(batches()[0])
    site.realign()
    for name, parameter in site.named_parameters():
        assert parameter is before[name] and parameter.data_ptr() == address[name], name
        assert parameter.requires_grad and parameter.is_leaf, name


def test_realigned_function_is_relu_except_in_the_interval_containing_zero():
    site = collecting_site(4, 16)
    scale, shift = torch.tensor([1.0, 0.1, 2.0, 1.0]), torch.tensor([0.3, 5.0, -0.9, -20.0])
    site(torch.randn(64, 4, 9) * scale[:, None] + shift[:, None])
    site.realign()
    left, right = site.left_bound.detach(), site.right_bound.detach()
    contains_zero = (left < 0) & (right > 0)
    assert contains_zero.tolist() == [True, False, True, False]
    x = torch.linspace(-25, 25, 5001)[:, None].expand(-1, 4)
    difference = (site(x) - x.relu()).abs()
    interval = (right - left) / 16
    around_zero = contains_zero & (((x - left) / interval).floor() == (-left / interval).floor())
    # If zero is outside the bounds, equation 6 (K_L = 0, K_R = 1) is ReLU only between them.
    is_relu = torch.where(contains_zero, ~around_zero, (x >= left) & (x < right))
    # Bounds and points up to 23 are rounded to float32, with an error of up to 1e-6 each.
    assert difference[is_relu].max() < 1e-5
    assert (difference <= interval / 4 + 1e-5)[around_zero].all()  # the chord across the kink


@pytest.mark.parametrize("value", [2.5, -1.0, 0.0])
def test_bounds_of_a_constant_channel_are_widened(value):
    site = collecting_site(2, 4)
    site(torch.stack([torch.full((6, 5), value), torch.randn(6, 5)], dim=1))
    site.realign()
    knots = value + np.array([-5e-3, -2.5e-3, 0, 2.5e-3, 5e-3])
    np.testing.assert_allclose(site.left_bound[0].item(), knots[0], **CLOSE)
    np.testing.assert_allclose(site.right_bound[0].item(), knots[-1], **CLOSE)
    np.testing.assert_allclose(site.points[0].detach().numpy(), np.maximum(knots, 0), **CLOSE)
    assert site.right_bound[1] - site.left_bound[1] > 3  # the other channel is not widened


def test_realign_without_a_batch_keeps_the_bounds():
    site = collecting_site(3)
    before = snapshot(site)
    site.realign()
    assert_same_state(site, before | {"phase": torch.tensor(LEARNING)})
    assert not site.collecting


def test_phase_2_learns():
    site = trained_site()
    before = snapshot(site)
    optimizer = torch.optim.SGD(site.parameters(), lr=0.01)
    x = torch.cat([batches()[0], torch.tensor([-50.0, 50.0]).view(2, 1, 1, 1).expand(2, 3, 4, 5)])
    site(x).square().mean().backward()
    optimizer.step()
    for name in PARAMETERS:
        assert not torch.equal(getattr(site, name), before[name]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@layer_or_channel_wise
def test_other_dtypes_work_in_both_phases(channel_wise, dtype):
    site = collecting_site(3, 16, channel_wise).to(dtype)
    x = batches(dtype=dtype)[0]
    assert torch.equal(site(x), x.relu())
    site.realign()
    mu, sigma = oracle.running([x.double().numpy()], len(site.running_mean))
    # Bounds of about 10, and the statistics that determine them, are rounded to dtype.
    unit = 40 * torch.finfo(dtype).eps
    for name, value in oracle.realigned(mu, sigma, 16).items():
        parameter = getattr(site, name)
        assert parameter.dtype == dtype
        np.testing.assert_allclose(
            parameter.detach().double().numpy(),
            value,
            rtol=0,
            atol=unit * max(1, np.abs(value).max()),
            err_msg=name,
        )
    y = site(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in site.parameters())


# --- saving and loading -------------------------------------------------------------------------


def save_and_load(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def phase_1_site(**options) -> PWLU:
    site = collecting_site(3, 8, **options)
    site(batches()[0])
    return site


@layer_or_channel_wise
@pytest.mark.parametrize("make_target", [PWLU, collecting_site, phase_1_site, trained_site])
@pytest.mark.parametrize("make_source", [phase_1_site, trained_site])
def test_checkpoint_restores_phase_statistics_and_function(make_source, make_target, channel_wise):
    source = make_source(channel_wise=channel_wise)
    size = () if make_target in (phase_1_site, trained_site) else (3, 8)
    target = make_target(*size, channel_wise=channel_wise)
    target.load_state_dict(save_and_load(source.state_dict()))
    assert_same_state(target, source)
    assert target.collecting == source.collecting
    inputs = batches()[1:]
    for x in inputs:  # both continue identically
        assert torch.equal(target(x), source(x))
    assert_same_state(target, source)
    if source.collecting:
        assert_statistics(target, batches()[:1] + inputs)
        source.realign()
        target.realign()
        assert_same_state(target, source)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("other", [{"num_intervals": 8}, {"channel_wise": False}], ids=["N", "layer-wise"])
def test_checkpoint_of_another_size_raises_an_error_naming_the_site(other, strict):
    net = nn.ModuleDict({"act1": PWLU(3, 16)})
    saved = nn.ModuleDict({"act1": PWLU(3, **other)}).state_dict()
    with pytest.raises(RuntimeError, match=r"act1\.points"):
        net.load_state_dict(saved, strict=strict)


@pytest.mark.parametrize("lacking", sorted(PARAMETERS))
def test_missing_parameter_raises_an_error_naming_the_site(lacking):
    net = nn.ModuleDict({"act1": PWLU(3)})
    before, saved = snapshot(net), nn.ModuleDict({"act1": trained_site()}).state_dict()
    del saved[f"act1.{lacking}"]
    with pytest.raises(
        RuntimeError, match=rf"'act1' \({lacking} missing.*NUM_INTERVALS other than 16.*CHANNEL_WISE"
    ):
        net.load_state_dict(saved, strict=False)
    assert_same_state(net, before)


def test_checkpoint_with_only_parameters_means_phase_2():
    source, target = trained_site(), phase_1_site()
    target.load_state_dict({k: v for k, v in source.state_dict().items() if k in PARAMETERS}, strict=False)
    assert not target.collecting and target.phase == LEARNING
    x = batches()[0]
    assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("make_site", [phase_1_site, trained_site])
def test_checkpoint_without_the_site_leaves_it_unchanged(make_site):
    net = nn.ModuleDict({"conv": nn.Conv2d(3, 3, 1), "act1": make_site()})
    before, collecting = snapshot(net["act1"]), net["act1"].collecting
    net.load_state_dict({"conv.weight": torch.zeros(3, 3, 1, 1)}, strict=False)
    assert_same_state(net["act1"], before)
    assert net["act1"].collecting == collecting


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("make_site", [phase_1_site, trained_site])
def test_copy_is_equal_and_independent(make_site, duplicate):
    site = make_site()
    other, before, x = duplicate(site), snapshot(site), batches()[1]
    assert_same_state(other, site)
    assert other.collecting == site.collecting
    other(x)
    other.realign() if other.collecting else other.begin_collecting()
    assert_same_state(site, before)
    assert other.collecting != site.collecting
