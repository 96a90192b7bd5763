"""Properties of individual activation families: initial values, options, randomness, norms."""

import copy

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, get_norm
from fvcore.nn.precise_bn import update_bn_stats
from torch import nn

from pwlu_det import build_activation
from pwlu_det.activations import APL, PAU, RPAU, FReLU, MetaAcon

C = 512


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def shapes(activation):
    return {name: tuple(p.shape) for name, p in activation.named_parameters()}


# --- initial values -----------------------------------------------------------------------------

CONSTANT_INIT = {
    "relu": {},
    "swish": {},
    "relu6": {},
    "leaky_relu": {},
    "rrelu": {},
    "elu": {},
    "celu": {},
    "mish": {},
    "softplus": {},
    "maxout": {},
    "prelu": {"slope": 0.25},
    "acon_a": {"beta": 1.0},
    "acon_b": {"p": 0.25, "beta": 1.0},
    "srelu": {"left": 0.0, "left_slope": 0.01, "right": 1.0, "right_slope": 1.0},
    "mixture": {"identity_share": 0.01, "relu_share": 0.99},
}


@pytest.mark.parametrize("name", CONSTANT_INIT)
def test_constant_initial_values(cfg, name):
    cfg.MODEL.ACTIVATION.NAME = name
    for activation in (build_activation(name, 3), build_activation(cfg, 3)):
        parameters = dict(activation.named_parameters())
        assert parameters.keys() == CONSTANT_INIT[name].keys()
        for key, value in CONSTANT_INIT[name].items():
            assert torch.equal(parameters[key], torch.full((3,), value))


def assert_normal(values, std):
    assert abs(values.mean()) < 0.2 * std and values.std().item() == pytest.approx(std, rel=0.1)
    assert values.abs().max() > 2.2 * std  # a uniform distribution would end at 1.7 std


def assert_uniform(values, bound):
    assert values.abs().max() <= bound
    assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.1) and abs(values.mean()) < 0.2 * bound


def test_acon_init():
    acon_c, meta_acon = build_activation("acon_c", C), build_activation("meta_acon", C)
    assert shapes(acon_c) == {"p1": (C,), "p2": (C,), "beta": (C,)}
    assert torch.equal(acon_c.beta, torch.ones(C))
    for activation in (acon_c, meta_acon):
        assert_normal(activation.p1, 1)
        assert_normal(activation.p2, 1)
        assert not torch.equal(activation.p1, activation.p2)
    assert shapes(meta_acon) == {
        **{"p1": (C,), "p2": (C,)},
        **{"fc1.weight": (32, C, 1, 1), "fc1.bias": (32,), "bn1.weight": (32,), "bn1.bias": (32,)},
        **{"fc2.weight": (C, 32, 1, 1), "fc2.bias": (C,), "bn2.weight": (C,), "bn2.bias": (C,)},
    }


@pytest.mark.parametrize(
    "channels, reduction, hidden", [(64, 16, 16), (256, 16, 16), (512, 16, 32), (64, 4, 16)]
)
def test_hidden_channels_of_meta_acon(channels, reduction, hidden):
    assert MetaAcon(channels, reduction=reduction).fc1.out_channels == hidden


@pytest.mark.parametrize("hinges", [1, 3, 5])
def test_apl_init(hinges):
    activation = APL(C, hinges)
    assert shapes(activation) == {"slopes": (hinges, C), "offsets": (hinges, C)}
    assert_uniform(activation.slopes, 0.5 / hinges)
    assert_normal(activation.offsets, 0.5)


def test_frelu_init():
    activation = build_activation("frelu", C)
    assert shapes(activation) == {
        **{"conv.weight": (C, 1, 3, 3), "conv.bias": (C,)},
        **{"norm.weight": (C,), "norm.bias": (C,)},
    }
    assert_normal(activation.conv.weight, (2 / 9) ** 0.5)
    assert_uniform(activation.conv.bias, 1 / 3)
    assert activation.conv.padding == (1, 1) and activation.conv.stride == (1, 1)
    assert torch.equal(activation.norm.weight, torch.ones(C)) and not activation.norm.bias.any()


@pytest.mark.parametrize("start, slope", [("leaky_relu", 0.01), ("relu", 0.0)])
@pytest.mark.parametrize("family", [PAU, RPAU])
def test_pau_init(family, start, slope):
    layer_wise = family(3, start=start).eval()
    assert shapes(layer_wise) == {"numerator": (1, 6), "denominator": (1, 4)}
    channel_wise = family(3, channel_wise=True, start=start).eval()
    assert shapes(channel_wise) == {"numerator": (3, 6), "denominator": (3, 4)}
    x = torch.linspace(-3, 3, 601)[:, None].expand(-1, 3)
    torch.testing.assert_close(channel_wise(x), layer_wise(x))
    error = (layer_wise(x) - torch.where(x > 0, x, slope * x)).abs().max()
    assert error < 0.031
    with pytest.raises(ValueError, match="PAU: start is 'tanh'; it must be one of leaky_relu, relu"):
        family(3, start="tanh")


def test_slaf_starts_as_the_least_squares_fit_to_relu():
    activation = build_activation("slaf", 3)
    assert shapes(activation) == {"coefficients": (3, 4)}
    x = torch.linspace(-3, 3, 20001, dtype=torch.float64)
    powers = torch.stack([x**j for j in range(4)], dim=1)
    fit = torch.linalg.lstsq(powers, x.relu()[:, None]).solution.flatten()
    torch.testing.assert_close(activation.coefficients.double(), fit.expand(3, -1), rtol=0, atol=1e-3)


def test_swish_with_a_trainable_beta_starts_as_swish(cfg):
    cfg.MODEL.ACTIVATION.NAME = "swish"
    cfg.MODEL.ACTIVATION.SWISH.TRAINABLE_BETA = True
    activation = build_activation(cfg, 3)
    assert shapes(activation) == {"beta": (3,)}
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(activation(x), build_activation("swish", 3)(x))


# --- options ------------------------------------------------------------------------------------


def test_config_options_are_applied(cfg):
    node = cfg.MODEL.ACTIVATION
    node.APL.NUM_HINGES = 5
    node.PAU.CHANNEL_WISE, node.PAU.START = True, "relu"
    node.RPAU.ALPHA = 0.25
    node.META_ACON.MODE, node.META_ACON.REDUCTION = "layer", 8
    built = {}
    for node.NAME in ("apl", "pau", "rpau", "meta_acon"):
        built[node.NAME] = build_activation(cfg, 6)
    assert built["apl"].slopes.shape == (5, 6)
    assert torch.equal(built["pau"].numerator, PAU(6, channel_wise=True, start="relu").numerator)
    assert (built["rpau"].alpha, built["rpau"].numerator.shape) == (0.25, (1, 6))
    assert built["meta_acon"].mode == "layer" and set(shapes(built["meta_acon"])) == {"p1", "p2"}


WRONG = {
    "APL: num_hinges is 0; it must be at least 1": lambda: APL(3, 0),
    "RPAU: alpha is 1.5; it must be in": lambda: RPAU(3, alpha=1.5),
    "Meta-ACON: mode is 'image'; it must be one of channel, layer, pixel": lambda: MetaAcon(3, mode="image"),
    "Meta-ACON: reduction is 0; it must be at least 1": lambda: MetaAcon(3, reduction=0),
}


@pytest.mark.parametrize("message", WRONG)
def test_error_names_the_argument_out_of_range(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


@pytest.mark.parametrize("norm, expected", [("BN", nn.BatchNorm2d), ("GN", nn.GroupNorm), ("", nn.Identity)])
def test_norm_is_that_of_the_resnet(cfg, norm, expected):
    cfg.MODEL.ACTIVATION.NAME, cfg.MODEL.RESNETS.NORM = "frelu", norm
    assert type(build_activation(cfg, 32).norm) is expected
    if norm != "GN":
        cfg.MODEL.ACTIVATION.NAME = "meta_acon"
        activation = build_activation(cfg, 32)
        assert type(activation.bn1) is type(activation.bn2) is expected


# --- randomized activations ---------------------------------------------------------------------


def test_rrelu_draws_one_slope_per_element_in_training():
    activation, x = build_activation("rrelu", 3), torch.cat([torch.randn(100, 3), -torch.ones(400, 3)])
    slopes = activation(x)[x < 0] / x[x < 0]
    assert slopes.min() >= 1 / 8 - 1e-6 and slopes.max() <= 1 / 3 + 1e-6 and slopes.std() > 0.05
    assert torch.equal(activation(x)[x > 0], x[x > 0])
    torch.testing.assert_close(activation.eval()(x)[x < 0] / x[x < 0], torch.full_like(slopes, 11 / 48))


def test_rpau_draws_per_element_in_training_and_is_pau_in_evaluation():
    activation, pau = RPAU(3, alpha=0.1), PAU(3)
    x = torch.full((2, 3, 50), 0.7, requires_grad=True)
    y = activation(x)
    assert y.unique().numel() > 290
    # Q is at least 1, and the terms of P and Q are off by at most 10%.
    assert (y / pau(x)).min() > 0.9 / 1.1 and (y / pau(x)).max() < 1.1 / 0.9
    assert not torch.equal(activation(x), y)
    torch.manual_seed(3)
    first = activation(x)
    torch.manual_seed(3)
    assert torch.equal(activation(x), first)
    y.sum().backward()
    assert x.grad.unique().numel() > 290
    assert torch.equal(activation.eval()(x), pau(x))
    assert torch.equal(RPAU(3, alpha=0.0)(x), pau(x))


# --- Meta-ACON ----------------------------------------------------------------------------------


def test_single_sample_raises_a_clear_error_in_training():
    x = torch.randn(1, 3, 4, 4)
    activation = MetaAcon(3)
    with pytest.raises(
        ValueError, match=r"Meta-ACON: the batch has one sample, .* two images or more .*FrozenBN"
    ):
        activation(x)
    activation.eval()(x)
    activation.train().bn1.eval()  # bn2 still takes the statistics of the batch
    with pytest.raises(ValueError, match=r"Meta-ACON: the batch has one sample"):
        activation(x)
    MetaAcon(3, norm=FrozenBatchNorm2d)(x)
    for mode in ("layer", "pixel"):
        MetaAcon(3, mode=mode)(x)


def test_single_sample_in_training_with_norms_in_evaluation():
    """As in fine-tuning with fixed statistics, where ``eval()`` is called for the norms alone."""
    x, activation = torch.randn(1, 3, 4, 4), MetaAcon(3)
    expected = activation.eval()(x)
    activation.train()
    activation.bn1.eval(), activation.bn2.eval()
    assert torch.equal(activation(x), expected)


def test_meta_acon_beta_depends_on_the_inputs_of_its_mode():
    """Change one element of the input and see which elements of the output change."""
    x = torch.randn(2, 3, 4, 4)
    moved = x.clone()
    moved[0, 1, 2, 2] += 3
    for mode, expected in (("pixel", 1), ("layer", 48), ("channel", 48)):
        activation = MetaAcon(3, mode=mode).eval()
        changed = activation(moved) != activation(x)
        assert not changed[1].any(), mode
        # The mean of one channel affects all channels of its sample through the two convolutions.
        assert changed.sum() >= 0.9 * expected and (mode != "pixel" or changed.sum() == 1), mode


def test_beta_is_as_precise_for_bfloat16_as_for_float32_input():
    activation = MetaAcon(64).eval()
    x = torch.randn(2, 64, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = activation(x)
    assert torch.equal(y, activation(x.float()).bfloat16())


# --- F-ReLU -------------------------------------------------------------------------------------


def plain_frelu(module, x):
    return torch.maximum(x, module.norm(module.conv(x)))


def trained_frelu(channels=3, **options):
    module = FReLU(channels, **options)
    with torch.no_grad():
        module.norm.weight.uniform_(0.5, 1.5)
        module.norm.bias.normal_()
    return module


def test_frelu_matches_the_three_plain_operations_in_training_and_evaluation():
    ours = trained_frelu()
    plain = copy.deepcopy(ours)
    for step in range(3):
        x = torch.randn(2 + step, 3, 6, 5)
        torch.testing.assert_close(ours(x), plain_frelu(plain, x))
        for (name, a), b in zip(ours.named_buffers(), plain.buffers()):
            torch.testing.assert_close(a, b, msg=name)
    assert ours.norm.num_batches_tracked == 3
    ours.eval(), plain.eval()
    torch.testing.assert_close(ours(x), plain_frelu(plain, x))


@pytest.mark.parametrize(
    "norm", ["FrozenBN", "GN", "LN", "naiveSyncBN", "momentum None", "no statistics", "no norm"]
)
def test_frelu_with_other_norms_matches_the_plain_operations(norm):
    build = {
        "momentum None": lambda c: nn.BatchNorm2d(c, momentum=None),
        "no statistics": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
        "no norm": lambda c: nn.Identity(),
    }.get(norm, lambda c: get_norm(norm, c))
    ours = FReLU(32, norm=build)
    plain, x, grad = copy.deepcopy(ours), torch.randn(2, 32, 5, 6), torch.randn(2, 32, 5, 6)
    for training in (True, False):
        results = []
        for module, function in ((ours, ours), (plain, lambda x: plain_frelu(plain, x))):
            module.train(training)
            y = function(x)
            results.append((y, *torch.autograd.grad(y, [*module.parameters()], grad), *module.buffers()))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_precise_bn_updates_the_norm_of_frelu():
    ours = trained_frelu()
    batches = [torch.randn(4, 3, 6, 5) for _ in range(3)]
    plain = nn.Sequential(copy.deepcopy(ours.conv), copy.deepcopy(ours.norm))
    update_bn_stats(ours, batches, 3)
    update_bn_stats(plain, batches, 3)
    torch.testing.assert_close(ours.norm.running_mean, plain[1].running_mean)
    torch.testing.assert_close(ours.norm.running_var, plain[1].running_var)
    assert ours.norm.running_mean.abs().max() > 0


def test_folded_norm_is_never_stale():
    module, x = trained_frelu().eval(), torch.randn(2, 3, 6, 5)
    before = module(x)
    module.load_state_dict(trained_frelu().state_dict())
    assert not torch.equal(module(x), before)
    torch.testing.assert_close(module(x), plain_frelu(module, x))
