"""norm_activation() calls the modules wherever the op does not apply, or would be seen."""

import types

import pytest
import torch
from norm_modules import CONTENTS, FUSED, C, arguments_of, assert_equal_traces, build, record_calls, steps
from torch import nn
from torch.nn.utils import parametrizations

from pwlu_det.activations import ACTIVATIONS, PWLU, build_activation
from pwlu_det.activations import deferred_norm as module
from pwlu_det.activations.norm_activation import norm_activation

pytestmark = pytest.mark.skipif("cpu" not in module.DEVICES, reason="there are no kernels")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def calls(monkeypatch):
    """The activations that the op is called with."""
    return record_calls(monkeypatch, lambda activation, added: activation)


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(PWLU):
    def forward(self, x):
        return super().forward(x) + 1


def with_forward(module):
    module.forward = types.MethodType(lambda self, x: type(self).forward(self, x) + 1, module)
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
    assert calls == (["pwlu"] if added == "norm" else [])  # its output is then an added tensor
    if added == "norm" and norm is not nn.Identity:
        assert_equal_traces(nn.ModuleList([model[0], model[1], norm()]), maps)
        assert len(calls) == 2


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
    others = {"celu", "elu", "frelu", "leaky_relu", "maxout", "meta_acon", "mish", "relu", "relu6", "rpau"}
    others |= {"rrelu", "softplus"}
    own = {name for name, cls in ACTIVATIONS.items() if cls.__module__.startswith("pwlu_det.")}
    assert own == others.union(FUSED)


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
    torch.testing.assert_close(torch.jit.trace(Site(), maps[0], check_trace=False)(maps[0]), expected)
    exported = torch.export.export(Site(), (maps[0],))
    torch.testing.assert_close(exported.module()(maps[0]), expected)
    assert not any("norm_activation" in str(node.target) for node in exported.graph.nodes) and not calls


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
