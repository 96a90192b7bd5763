"""norm_activation() agrees with its modules in everything that they leave behind, and calls them where it must."""

import copy

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.nn.utils import parametrizations

from pwlu_det import ops
from pwlu_det.activations import ACTIVATIONS, PWLU, build_activation
from pwlu_det.activations import norm_activation as module
from pwlu_det.activations.norm_activation import norm_activation

C = 6
FUSED = "apl acon_a acon_b acon_c mixture pau prelu pwlu slaf srelu swish".split()
CONTENTS = ("nothing", "tensor", "norm")

pytestmark = pytest.mark.skipif("cpu" not in module._DEVICES, reason="there are no kernels")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def calls(monkeypatch):
    """The activations that the op is called with."""
    names, op = [], ops.norm_activation

    def counted(*arguments):
        names.append(arguments[3])
        return op(*arguments)

    monkeypatch.setattr(ops, "norm_activation", counted)
    return names


def randomised(norm):
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


def build(name="pwlu", norm=nn.BatchNorm2d, added="nothing", **options):
    """A model of two norms (the second may be None) and an activation, its maps, and the same in float64."""
    own = nn.ModuleList([randomised(norm(C)), build_activation(name, C, **options)])
    own.append(randomised(norm(C)) if added == "norm" else nn.Identity())
    maps = [torch.randn(3, C, 5, 7) * 2 + 1 for _ in range(1 if added == "nothing" else 2)]
    return own, maps


def arguments_of(model, maps):
    norm, activation, added_norm = model
    return (norm, activation, *maps, *([] if isinstance(added_norm, nn.Identity) else [added_norm]))


def steps(norm, activation, x, added=None, added_norm=None):
    z = norm(x)
    if added is not None:
        z = z + (added if added_norm is None else added_norm(added))
    return activation(z)


def trace(function, model, maps, iterations=1):
    """Outputs, gradients and buffers after some calls."""
    model = copy.deepcopy(model)
    maps = [m.detach().clone().requires_grad_() for m in maps]
    results = {}
    for i in range(iterations):
        y = function(*arguments_of(model, [m * (1 + i) for m in maps]))
        results[f"y{i}"] = y.detach()
        if y.requires_grad:
            weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
            (y * weights).sum().backward()
    for i, m in enumerate(maps):
        results[f"map{i}"] = m.grad
    results |= {name: p.grad for name, p in model.named_parameters()}
    results |= dict(model.named_buffers())
    return results


def assert_equal_traces(model, maps, iterations=1, **kwargs):
    actual = trace(lambda *a: norm_activation(*a, **kwargs), model, maps, iterations)
    expected = trace(steps, model, maps, iterations)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None, name
        else:
            scale = float(value.abs().max()) or 1.0
            torch.testing.assert_close(
                actual[name], value, rtol=1e-4, atol=2e-5 * scale, msg=lambda m: f"{name}: {m}"
            )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("added", CONTENTS)
@pytest.mark.parametrize("name", FUSED)
def test_like_the_modules(name, added, training, calls):
    model, maps = build(name, added=added)
    assert_equal_traces(model.train(training), maps)
    assert len(calls) == 1


@pytest.mark.parametrize("added", CONTENTS)
def test_frozen_batch_norm(added, calls):
    model, maps = build(norm=FrozenBatchNorm2d, added=added)
    assert_equal_traces(model, maps)
    assert len(calls) == 1


def test_sync_batch_norm_in_evaluation(calls):
    model, maps = build(norm=nn.SyncBatchNorm)
    assert_equal_traces(model.eval(), maps)
    assert len(calls) == 1


@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, None])
@pytest.mark.parametrize("track", [True, False])
def test_running_statistics_of_several_batches(momentum, track, calls):
    model, maps = build(added="norm")
    for norm in (model[0], model[2]):
        norm.momentum = momentum
        if not track:
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    for training in (True, False):
        assert_equal_traces(model.train(training), maps, iterations=3)
    assert len(calls) == 6


def test_the_unbiased_variance_is_tracked():
    model, (x,) = build()
    model[0].momentum = 1.0
    norm_activation(model[0], model[1], x)
    torch.testing.assert_close(model[0].running_var, x.var((0, 2, 3), correction=1))


@pytest.mark.parametrize("channel_wise", [True, False])
def test_phase_1_collects_the_statistics_of_the_norm_s_output(channel_wise, calls):
    model, maps = build(channel_wise=channel_wise)
    model[1].begin_collecting()
    assert_equal_traces(model, maps, iterations=3)
    assert calls == ["pwlu_phase1"] * 3
    with torch.no_grad():  # this does not collect
        norm_activation(*arguments_of(model, maps))
    assert calls[3:] == ["pwlu"]


def test_phase_1_ignores_a_batch_that_is_not_finite(calls):
    model, (x,) = build()
    model[1].begin_collecting()
    norm_activation(model[0], model[1], x)
    kept = model[1].running_std.clone()
    for value in (float("nan"), float("inf"), 1e30):
        norm_activation(model[0], model[1], torch.where(x == x[0, 1, 2, 3], value, x))
    assert torch.equal(model[1].running_std, kept) and model[1].num_batches == 1
    assert calls == ["pwlu_phase1"] * 4


def test_phase_1_looks_at_its_input_where_the_norm_does_not_tell(calls):
    for norm, added, training in (
        (nn.BatchNorm2d, "tensor", True),
        (nn.BatchNorm2d, "norm", True),
        (FrozenBatchNorm2d, "nothing", True),
    ):
        model, maps = build(norm=norm, added=added)
        model[1].begin_collecting()
        assert_equal_traces(model, maps)
    model, maps = build()
    model[1].begin_collecting()
    model[0].eval()
    assert_equal_traces(model, maps)
    assert not calls


def test_changed_parameters_in_phase_1_are_warned_of(calls):
    model, maps = build()
    model[1].begin_collecting()
    with torch.no_grad():
        model[1].points += 1
    with pytest.warns(UserWarning, match="no longer those of ReLU"):
        y = norm_activation(*arguments_of(model, maps))
    assert not calls
    torch.testing.assert_close(
        y,
        ops.pwlu(
            model[0](*maps),
            *(
                getattr(model[1], n)
                for n in ops.pwlu.__annotations__
                if n in dict(model[1].named_parameters())
            ),
        ),
    )


def test_relu_is_fused_only_on_request(calls):
    model, maps = build("relu")
    x = maps[0]
    norm = copy.deepcopy(model[0])
    assert torch.equal(norm_activation(model[0], model[1], x), norm(x).relu())
    assert not calls
    assert_equal_traces(model, maps, fuse_relu=True)
    assert calls == ["relu"]


# --- where the modules are called ---------------------------------------------------------------


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(PWLU):
    def forward(self, x):
        return super().forward(x) + 1


def with_forward(module):
    forward = module.forward
    module.forward = lambda x: forward(x) + 1
    return module


def hooked(register):
    def add(model):
        seen = []
        getattr(model, register)(lambda *_: seen.append(1) and None)
        return model

    return add


UNKNOWN_NORMS = {
    "subclass": lambda: Doubled(C),
    "group": lambda: nn.GroupNorm(2, C),
    "instance": lambda: nn.InstanceNorm2d(C, affine=True),
    "no affine": lambda: nn.BatchNorm2d(C, affine=False),
    "forward": lambda: with_forward(nn.BatchNorm2d(C)),
    "forward hook": lambda: hooked("register_forward_hook")(nn.BatchNorm2d(C)),
    "forward pre-hook": lambda: hooked("register_forward_pre_hook")(nn.BatchNorm2d(C)),
    "backward hook": lambda: hooked("register_full_backward_hook")(nn.BatchNorm2d(C)),
    "sequence": lambda: nn.Sequential(nn.BatchNorm2d(C), nn.Sigmoid()),
    "identity": nn.Identity,
}


@pytest.mark.parametrize("added", CONTENTS)
@pytest.mark.parametrize("norm", UNKNOWN_NORMS.values(), ids=UNKNOWN_NORMS)
def test_any_other_norm_is_called(norm, added, calls):
    model, maps = build(added=added)
    norms = nn.ModuleList([norm(), model[1], model[2]])
    assert_equal_traces(norms, maps)
    if added == "norm":
        assert_equal_traces(nn.ModuleList([model[0], model[1], norm()]), maps)
    assert not calls


OTHER_ACTIVATIONS = {
    "subclass": lambda: Shifted(C),
    "forward": lambda: with_forward(PWLU(C)),
    "forward hook": lambda: hooked("register_forward_hook")(PWLU(C)),
    "backward pre-hook": lambda: hooked("register_full_backward_pre_hook")(PWLU(C)),
    "parametrized": lambda: parametrizations.orthogonal(PWLU(C), "points"),
    "user's": lambda: nn.Hardswish(),
    "frelu": lambda: build_activation("frelu", C),
    "meta_acon": lambda: build_activation("meta_acon", C),
}


@pytest.mark.parametrize("activation", OTHER_ACTIVATIONS.values(), ids=OTHER_ACTIVATIONS)
def test_any_other_activation_is_called(activation, calls):
    model, maps = build(added="norm")
    assert_equal_traces(nn.ModuleList([model[0], activation(), model[2]]), maps)
    assert not calls


def test_rpau_and_meta_acon_by_mode(calls):
    model, maps = build("rpau")
    norm_activation(*arguments_of(model, maps))
    assert not calls
    assert_equal_traces(model.eval(), maps)
    assert_equal_traces(build("meta_acon", mode="pixel")[0], maps)
    assert calls == ["pau", "meta_acon_pixel"]


def test_every_activation_is_known():
    """A new one has to be added here, and to the fused ones if it has an op."""
    others = "celu elu frelu leaky_relu maxout meta_acon mish relu relu6 rpau rrelu softplus".split()
    own = {name for name, cls in ACTIVATIONS.items() if cls.__module__.startswith("pwlu_det.")}
    assert own == {*FUSED, *others}


def test_a_global_hook_calls_the_modules(calls):
    model, maps = build()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        norm_activation(*arguments_of(model, maps))
    finally:
        handle.remove()
    assert seen == [nn.BatchNorm2d, PWLU] and not calls


def test_two_norms_with_different_statistics(calls):
    model, maps = build(added="norm")
    model[2].eval()
    assert_equal_traces(model, maps)
    assert not calls


def test_tracing_and_export_see_the_modules(calls):
    model, maps = build()
    model.eval()

    class Site(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.act = model[0], model[1]

        def forward(self, x):
            return norm_activation(self.norm, self.act, x)

    expected = steps(model[0], model[1], *maps)
    torch.testing.assert_close(torch.jit.trace(Site(), maps[0])(maps[0]), expected)
    exported = torch.export.export(Site(), (maps[0],))
    torch.testing.assert_close(exported.module()(maps[0]), expected)
    assert "norm_activation" not in str(exported.graph) and not calls


def test_errors_are_those_of_the_modules(calls):
    model, _ = build()
    for wrong, error in ((torch.ones(1, C, 1, 1), ValueError), (torch.ones(2, C, 3), ValueError)):
        with pytest.raises(error):
            norm_activation(model[0], model[1], wrong)
    with pytest.raises(RuntimeError):
        norm_activation(model[0], model[1], torch.ones(2, C + 1, 3, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(dtype, calls):
    model, maps = build("swish", added="norm")
    norm, act, added_norm = model if dtype != torch.float64 else model.double()
    maps = [m.to(dtype) for m in maps]
    actual = norm_activation(norm, act, *maps, added_norm)
    expected = steps(norm, act, *maps, added_norm)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=5e-2)
    assert len(calls) == 1


def test_double_backward_and_checkpointing():
    model, maps = build("swish")
    x = maps[0].requires_grad_()
    for function in (norm_activation, steps):
        (g,) = torch.autograd.grad(function(model[0], model[1], x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(g.square().sum(), x)
        if function is norm_activation:
            first = second
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3 * float(second.abs().max()))
    y = torch.utils.checkpoint.checkpoint(norm_activation, model[0], model[1], x, use_reentrant=False)
    (by_x,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad(norm_activation(model[0], model[1], x).square().sum(), x)
    assert torch.equal(by_x, expected)
