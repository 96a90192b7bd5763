import numpy as np
import oracle
import pytest
import torch
from torch import nn

from pwlu_det import PWLU, build_activation
from pwlu_det.activations.build import activation_parameters

NAMES = ("relu", "swish", "prelu", "pwlu")
# Some end in 3, the number of channels, which a parameter of [3] would wrongly broadcast to.
SHAPES = ((6, 3), (4, 3, 5), (2, 3, 4, 3), (2, 3, 2, 4, 3))
# In the activation's own dtype: a few roundings of values of up to about 8.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 0.06}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def build(cfg):
    """Build an activation for 3 channels from a config, with options of its family."""

    def build(name, **options):
        cfg.MODEL.ACTIVATION.NAME = name
        for key, value in options.items():
            cfg.MODEL.ACTIVATION[name.upper()][key] = value
        return build_activation(cfg, 3)

    return build


def shuffle(activation):
    """Move every parameter from its start, each channel's by another amount."""
    with torch.no_grad():
        for parameter in activation.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.5)
    return activation


def expected_output(activation, x):
    """The activations' formulas over ``[B, C, *]``, in NumPy float64."""
    p = {name: value.detach().double().numpy() for name, value in activation.named_parameters()}
    x = x.detach().double().numpy()
    channel = (-1, *[1] * (x.ndim - 2))
    if "points" in p:
        order = ("points", "left_bound", "right_bound", "left_slope", "right_slope")
        elements = oracle.per_function(x, len(p["points"]))
        return oracle.from_function(oracle.forward(elements, *(p[name] for name in order)), x.shape)
    if "slope" in p:
        return np.maximum(x, 0) + p["slope"].reshape(channel) * np.minimum(x, 0)
    if isinstance(activation, nn.ReLU):
        return np.maximum(x, 0)
    return x / (1 + np.exp(-p.get("beta", np.ones(1)).reshape(channel) * x))


def activations(build):
    """All of them, by name and by options."""
    yield from (build_activation(name, 3) for name in NAMES)
    yield build("swish", TRAINABLE_BETA=True)
    yield build("pwlu", REALIGN=False, CHANNEL_WISE=False)


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_keep_dtype_and_layout(build, shape, dtype, autocast):
    layouts = {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(len(shape), [])
    for activation in map(shuffle, activations(build)):
        for layout in [torch.contiguous_format, *layouts]:
            x = (torch.randn(shape) * 3).to(dtype).to(memory_format=layout)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y = activation(x)
            assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride()), activation
            y = y.detach().double().numpy()
            np.testing.assert_allclose(y, expected_output(activation, x), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_gradients(build, shape):
    for activation in map(shuffle, activations(build)):
        activation.double()
        x = torch.randn(shape, dtype=torch.float64) * 3
        x = (x + x.sign() * 0.01).requires_grad_()  # away from the kink at 0
        names, parameters = [*zip(*activation.named_parameters())] or ((), ())

        def function(x, *values, activation=activation, names=names):
            return torch.func.functional_call(activation, dict(zip(names, values)), x)

        assert torch.autograd.gradcheck(function, (x, *parameters)), activation


@pytest.mark.parametrize("name, backend", [*((name, "aot_eager") for name in NAMES), ("pwlu", "inductor")])
def test_compiles_in_one_graph(name, backend):
    activation = shuffle(build_activation(name, 3))
    # Inductor gets the activation alone: compiling kernels around it would take most of the tests' time.
    before = nn.Identity() if backend == "inductor" else nn.Conv2d(3, 3, 3)
    module = nn.Sequential(before, activation)
    x = torch.randn(2, 3, 6, 7)
    expected = module(x)
    expected.sum().backward()
    grads = [p.grad for p in module.parameters()]
    module.zero_grad()
    torch.compiler.reset()
    y = torch.compile(module, fullgraph=True, backend=backend)(x)
    y.sum().backward()
    # The convolution may be computed in another order: a few units of float32 rounding, summed 84 times.
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close([p.grad for p in module.parameters()], grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_exports_with_a_batch_of_any_size(name):
    module = nn.Sequential(nn.Conv2d(3, 3, 3), shuffle(build_activation(name, 3))).eval()
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(module, (torch.randn(2, 3, 6, 7),), dynamic_shapes=({0: batch},))
    assert ("pwlu_det.pwlu.default" in program.graph_module.code) == (name == "pwlu")
    x = torch.randn(5, 3, 6, 7)
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize("name, start", [("relu", {}), ("swish", {}), ("prelu", {"slope": 0.25})])
def test_parameters_by_default(build, name, start):
    for activation in (build_activation(name, 3), build(name)):
        parameters = dict(activation.named_parameters())
        assert parameters.keys() == start.keys()
        for key, value in start.items():
            assert torch.equal(parameters[key], torch.full((3,), value))


def test_swish_with_a_trainable_beta_starts_as_swish(build):
    activation = build("swish", TRAINABLE_BETA=True)
    assert torch.equal(activation.beta, torch.ones(3))
    assert dict(activation.named_parameters()).keys() == {"beta"}
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(activation(x), build_activation("swish", 3)(x))


def test_pwlu_by_name_is_an_ordinary_module():
    activation = build_activation("pwlu", 3)
    assert isinstance(activation, PWLU)
    assert not activation.collecting
    assert activation.points.shape == (3, 17)


def test_pwlu_options_arrive(build):
    activation = build(
        "pwlu", NUM_INTERVALS=6, CHANNEL_WISE=False, INIT_BOUND=2.5, STAT_MOMENTUM=0.8, NUM_SIGMA=2.0
    )
    assert activation.points.shape == (1, 7)
    assert (activation.num_intervals, activation.channel_wise, activation.init_bound) == (6, False, 2.5)
    assert (activation.stat_momentum, activation.num_sigma) == (0.8, 2.0)


def test_pwlu_with_realign_starts_in_phase_1(build):
    activation = build("pwlu", REALIGN=True)
    assert activation.collecting
    activation(torch.randn(2, 3, 4))
    assert activation.num_batches == 1


def test_pwlu_without_realign_is_fix_init(build):
    activation = build("pwlu", REALIGN=False, INIT_BOUND=10.0)
    assert not activation.collecting
    assert torch.equal(activation.left_bound, torch.full((3,), -10.0))
    assert torch.equal(activation.right_bound, torch.full((3,), 10.0))
    x = torch.linspace(-15, 15, 301)[:, None].expand(-1, 3)
    # Points of up to 10 are rounded to float32.
    torch.testing.assert_close(activation(x), x.relu(), rtol=1e-6, atol=1e-5)


def test_an_option_out_of_its_range_is_an_error(build):
    with pytest.raises(ValueError, match="num_intervals is 0"):
        build("pwlu", NUM_INTERVALS=0)


@pytest.mark.parametrize("name", ["gelu", "ReLU", ""])
def test_an_unknown_name_lists_the_known_ones(build, cfg, name):
    pattern = f"MODEL.ACTIVATION.NAME: unknown activation '{name}'; known are .*" + ".*".join(sorted(NAMES))
    with pytest.raises(ValueError, match=pattern):
        build_activation(name, 3)
    cfg.MODEL.ACTIVATION.NAME = name
    with pytest.raises(ValueError, match=pattern):
        build_activation(cfg, 3)


def test_activation_parameters_are_those_of_the_activations_alone(build):
    activations = [build("pwlu"), build_activation("prelu", 3), build_activation("relu", 3)]
    activations[1].requires_grad_(False)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), *activations, nn.BatchNorm2d(3))
    expected = [p for activation in activations for p in activation.parameters()]
    found = activation_parameters(model)
    assert len(expected) == 6
    assert [id(p) for p in found] == [id(p) for p in expected]
