"""Tests of every activation: dtype and layout, formula, gradients, compile, export, checkpoints."""

import io

import numpy as np
import oracle
import oracle_activations
import pytest
import torch
from torch import nn

from pwlu_det import PWLU, ConfigError, PwluDetError, build_activation, check_config
from pwlu_det.activations.registry import ACTIVATIONS, keeps_channels

NAMES = tuple(ACTIVATIONS)
OF_THE_SAME_SHAPE = tuple(filter(keeps_channels, NAMES))
# Some end in 3, the number of channels, to which a parameter of shape [3] would wrongly broadcast.
SHAPES = ((6, 3), (4, 3, 5), (2, 3, 4, 3), (2, 3, 2, 4, 3))
# By the dtype of the input: a few rounding errors of values up to about 8.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.06}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def build(cfg):
    """Build an activation for 3 channels from a config with the given options."""

    def build(name, **options):
        cfg.MODEL.ACTIVATION.NAME = name
        cfg.MODEL.RESNETS.NORM = "BN"
        for key, value in options.items():
            cfg.MODEL.ACTIVATION[name.upper()][key] = value
        return build_activation(cfg, 3)

    return build


def perturb(activation):
    """Move every parameter from its initial value, by a different amount for each channel."""
    with torch.no_grad():
        for parameter in activation.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.5)
    return activation


def activations(build):
    """Every activation by its name, and further variants by options."""
    yield from ((name, perturb(build_activation(name, 3))) for name in OF_THE_SAME_SHAPE)
    yield "swish", perturb(build("swish", TRAINABLE_BETA=True))
    yield "pwlu", perturb(build("pwlu", REALIGN=False, CHANNEL_WISE=False))
    yield "pau", perturb(build("pau", CHANNEL_WISE=True))
    for mode in ("layer", "pixel"):
        yield "meta_acon", perturb(build("meta_acon", MODE=mode))


def accepts(name, shape):
    return name != "frelu" or len(shape) == 4


def formula(name, activation):
    """The activation in evaluation mode as a NumPy function of x and the parameters."""
    if name == "pwlu":

        def pwlu(x, *parameters):
            return oracle.from_function(
                oracle.forward(oracle.per_function(x, len(parameters[0])), *parameters), x.shape
            )

        return pwlu
    if name == "relu":
        return lambda x: np.maximum(x, 0)
    if name == "frelu":
        mean, var = (t.double().numpy() for t in (activation.norm.running_mean, activation.norm.running_var))
        return lambda x, *p: oracle_activations.frelu(x, *p, mean, var)
    if name == "meta_acon" and activation.mode == "channel":
        return meta_acon
    name = f"meta_acon_{activation.mode}" if name == "meta_acon" else name
    return getattr(oracle_activations, {"rpau": "pau", "acon_a": "swish", "celu": "elu"}.get(name, name))


def meta_acon(x, p1, p2, *generator):
    """Mode "channel", with the initial statistics of the norms: mean 0, variance 1."""
    hidden = x.reshape(*x.shape[:2], -1).mean(2)
    for weight, bias, norm_weight, norm_bias in (generator[:4], generator[4:]):
        hidden = hidden @ weight[:, :, 0, 0].T + bias
        hidden = hidden / np.sqrt(1 + 1e-5) * norm_weight + norm_bias
    beta = oracle_activations.sigmoid(hidden).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    p1, p2 = (oracle_activations.column(p, x) for p in (p1, p2))
    return oracle_activations.smooth_maximum(p1 * x, p2 * x, beta)


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_keep_dtype_and_layout(build, shape, dtype, autocast):
    layouts = {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(len(shape), [])
    for name, activation in activations(build):
        if not accepts(name, shape):
            continue
        for layout in [torch.contiguous_format, *layouts]:
            x = (torch.randn(shape) * 3).to(dtype).to(memory_format=layout)
            for training in (True, False):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    y = activation.train(training)(x)
                assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride()), name
        activation = with_initial_statistics(activation)
        y, arrays = activation(x), [t.detach().double().numpy() for t in (x, *activation.parameters())]
        expected = formula(name, activation)(*arrays)
        scale = np.maximum(1, np.abs(expected).max())
        np.testing.assert_allclose(
            y.detach().double(), expected, rtol=0, atol=TOLERANCE[dtype] * scale, err_msg=name
        )


def with_initial_statistics(activation):
    """Switch to evaluation mode, with the initial statistics in all norms."""
    for module in activation.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return activation.eval()


RANDOM = ("rrelu", "rpau")  # draw random numbers on each call in training


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_gradients(build, training):
    for name, activation in activations(build):
        if name in RANDOM if training else name not in (*RANDOM, "frelu", "meta_acon"):
            continue  # the other activations are the same in both modes
        activation.double().train(training)
        x = torch.randn(2, 3, 3, 3, dtype=torch.float64) * 3
        x = (x + x.sign() * 0.01).requires_grad_()  # away from the kink at 0
        names, parameters = [*zip(*activation.named_parameters())] or ((), ())

        def function(x, *values, activation=activation, names=names):
            return torch.func.functional_call(activation, dict(zip(names, values)), x)

        assert torch.autograd.gradcheck(function, (x, *parameters)), name


@pytest.mark.parametrize(
    "name, backend", [*((name, "aot_eager") for name in OF_THE_SAME_SHAPE), ("pwlu", "inductor")]
)
def test_compiles_in_one_graph(name, backend):
    activation = perturb(build_activation(name, 3)).train(name not in RANDOM)
    # Inductor compiles only the activation: kernels for a convolution would take most of the test time.
    before = nn.Identity() if backend == "inductor" else nn.Conv2d(3, 3, 3)
    module = nn.Sequential(before, activation)
    x = torch.randn(2, 3, 6, 7)
    expected = module(x)
    expected.square().sum().backward()
    grads = [p.grad for p in module.parameters()]
    module.zero_grad()
    torch.compiler.reset()
    y = torch.compile(module, fullgraph=True, backend=backend)(x)
    y.square().sum().backward()
    # The convolution may sum in a different order: a few float32 rounding errors, summed 84 times.
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close([p.grad for p in module.parameters()], grads, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", RANDOM)
def test_random_activations_compile_in_training(name):
    module, x = build_activation(name, 3), torch.randn(2, 3, 40, requires_grad=True)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", OF_THE_SAME_SHAPE)
def test_exports_with_a_batch_of_any_size(name):
    module = nn.Sequential(nn.Conv2d(3, 3, 3), perturb(build_activation(name, 3))).eval()
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(module, (torch.randn(2, 3, 6, 7),), dynamic_shapes=({0: batch},))
    assert ("pwlu_det.pwlu.default" in program.graph_module.code) == (name == "pwlu")
    x = torch.randn(5, 3, 6, 7)
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints(name):
    x = torch.randn(2, 6 if name == "maxout" else 3, 4, 5)
    saved, loaded = perturb(build_activation(name, 3)), build_activation(name, 3)
    saved(x)  # updates the statistics of the norms
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loaded.eval()(x), saved.eval()(x))


def test_pwlu_by_name_is_an_ordinary_module():
    activation = build_activation("pwlu", 3)
    assert isinstance(activation, PWLU)
    assert not activation.collecting
    assert activation.points.shape == (3, 17)


def test_pwlu_config_options_are_applied(build):
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
    # Points up to 10 are rounded to float32.
    torch.testing.assert_close(activation(x), x.relu(), rtol=1e-6, atol=1e-5)


def test_option_out_of_range_is_an_error(build):
    with pytest.raises(ValueError, match="num_intervals is 0"):
        build("pwlu", NUM_INTERVALS=0)


@pytest.mark.parametrize("name", ["gelu", "ReLU", ""])
def test_error_for_an_unknown_name_lists_the_known_names(cfg, name):
    pattern = f"unknown activation '{name}'; it must be one of .*" + ".*".join(sorted(NAMES))
    with pytest.raises(PwluDetError, match=f"^{pattern}"):
        build_activation(name, 3)
    cfg.MODEL.ACTIVATION.NAME = name
    with pytest.raises(PwluDetError, match=f"^{pattern}"):
        build_activation(cfg, 3)
    with pytest.raises(ConfigError, match=f"^MODEL.ACTIVATION.NAME: {pattern}"):
        check_config(cfg)


def test_maxout_is_a_module_but_not_a_replacement_for_relu():
    x = torch.randn(2, 6, 4, 5)
    assert torch.equal(build_activation("maxout", 3)(x), torch.maximum(x[:, :3], x[:, 3:]))
    with pytest.raises(ValueError, match=r"Maxout: x has shape \(2, 3, 4\); \[B, 6, \*\] is needed"):
        build_activation("maxout", 3)(torch.zeros(2, 3, 4))
    assert not keeps_channels("maxout") and keeps_channels("relu")
