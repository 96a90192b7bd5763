"""What users add to the convolution or the norm of F-ReLU takes effect, fused ops or not."""

import warnings

import pytest
import torch
from detectron2 import layers
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from pwlu_det.activations import FReLU
from pwlu_det.activations.modules import is_plain_frozen_norm, is_plain_module


class Twice(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class TwiceTheNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def subclass(module):
    module.__class__ = Twice if isinstance(module, nn.Conv2d) else TwiceTheNorm


def own_forward(module):
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)


def prune_weight(module):
    prune.random_unstructured(module, "weight", amount=2)


def old_weight_norm(module):
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        weight_norm(module)


CHANGES = {
    "pruned": prune_weight,
    "weight norm": parametrizations.weight_norm,
    "old weight norm": old_weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": spectral_norm,
    "forward pre hook": lambda m: m.register_forward_pre_hook(lambda m, args: (3 * args[0],)),
    "forward hook": lambda m: m.register_forward_hook(lambda m, args, output: 2 * output + 1),
    "backward hook": lambda m: m.register_full_backward_hook(lambda m, of_x, of_y: (2 * of_x[0],)),
    "backward pre hook": lambda m: m.register_full_backward_pre_hook(lambda m, of_y: (2 * of_y[0],)),
    "subclass": subclass,
    "own forward": own_forward,
}
OF_TWO_DIMENSIONS = (
    "weight norm",
    "old weight norm",
    "spectral norm",
    "old spectral norm",
)  # need a weight of at least two


def make_module(norm=nn.BatchNorm2d) -> FReLU:
    torch.manual_seed(0)
    module = FReLU(3, norm=norm).double()
    for tensor in (*module.norm.parameters(), *module.norm.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 2)
    return module


def by_modules(module, x):
    return torch.maximum(x, module.norm(module.conv(x)))


def check(module, change=lambda module: None):
    """Compare two steps with a copy that calls its modules; returns the output of the last."""
    reference = make_module(type(module.norm)).train(module.training)
    reference.load_state_dict(module.state_dict())
    torch.manual_seed(1)
    change(module)
    torch.manual_seed(1)
    change(reference)
    for _ in range(2):
        x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
        y, expected = module(x), by_modules(reference, x)
        torch.testing.assert_close(y, expected)
        variables, others = ((x, *m.parameters()) for m in (module, reference))
        torch.testing.assert_close(
            torch.autograd.grad(y.pow(2).sum(), variables),
            torch.autograd.grad(expected.pow(2).sum(), others),
        )
    torch.testing.assert_close(module.state_dict(), reference.state_dict())
    return y.detach()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    "name, part",
    [(name, "conv") for name in CHANGES]
    + [(name, "norm") for name in CHANGES if name not in OF_TWO_DIMENSIONS],
)
def test_changes_of_a_module_take_effect(name, part, training):
    module = make_module().train(training)
    before = check(module)
    module = make_module().train(training)
    after = check(module, lambda m: CHANGES[name](getattr(m, part)))
    changed = not torch.allclose(before, after)
    assert changed or "backward" in name or "weight norm" in name or (training and name == "forward pre hook")


@pytest.mark.parametrize("name", ["forward hook", "backward hook", "own forward"])
def test_changes_of_a_frozen_norm_take_effect(name):
    check(make_module(layers.FrozenBatchNorm2d), lambda m: CHANGES[name](m.norm))


GLOBAL_HOOKS = {
    "forward pre": (
        global_hooks.register_module_forward_pre_hook,
        lambda m, args: (3 * args[0],) if isinstance(m, nn.Conv2d) else None,
    ),
    "forward": (
        global_hooks.register_module_forward_hook,
        lambda m, args, y: 2 * y if isinstance(m, nn.Conv2d) else None,
    ),
    "backward": (
        global_hooks.register_module_full_backward_hook,
        lambda m, of_x, of_y: (2 * of_x[0],) if isinstance(m, nn.Conv2d) else None,
    ),
}


@pytest.mark.parametrize("name", GLOBAL_HOOKS)
def test_global_hooks_take_effect(name):
    register, hook = GLOBAL_HOOKS[name]
    handle = register(hook)
    try:
        check(make_module().eval())
        assert not is_plain_module(nn.ReLU(), nn.ReLU)
    finally:
        handle.remove()
    assert is_plain_module(nn.ReLU(), nn.ReLU)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(3, 3, 5, padding=2, groups=3),
        nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False),
        nn.Conv2d(3, 3, 3, padding=1),
        nn.Conv2d(3, 3, 3, padding=2, dilation=2, groups=3),
        nn.Conv2d(3, 3, 3, padding=1, groups=3, padding_mode="reflect"),
    ],
    ids=["5x5", "no bias", "not depthwise", "dilated", "reflect"],
)
def test_another_convolution(other):
    module, x = make_module(), torch.randn(2, 3, 5, 6, dtype=torch.float64)
    module.conv = other.double()
    torch.testing.assert_close(module(x), by_modules(module, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_input_in_half_precision(dtype):
    module = make_module().float()
    CHANGES["forward hook"](module.conv)
    x = torch.randn(2, 3, 5, 6)
    y = module(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), by_modules(module, x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_plain_modules_are_fused(training):
    for norm in nn.BatchNorm2d, layers.FrozenBatchNorm2d:
        module = make_module(norm).train(training)
        name = type(module(torch.ones(2, 3, 4, 4, dtype=torch.float64)).grad_fn).__name__
        assert name == ("freluBackward" if training and norm is nn.BatchNorm2d else "frelu_inferenceBackward")


def test_is_plain_frozen_norm():
    class FrozenBatchNorm2d(nn.BatchNorm2d):
        pass

    assert is_plain_frozen_norm(layers.FrozenBatchNorm2d(3))
    assert not is_plain_frozen_norm(FrozenBatchNorm2d(3))
    assert not is_plain_frozen_norm(nn.BatchNorm2d(3))
