"""fuse_norms(): any model computes norms together with activations, and is otherwise as before."""

import copy
import io

import pytest
import torch
from norm_modules import record_calls
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from pwlu_det import PWLU, fuse_norms
from pwlu_det.activations import Swish
from pwlu_det.activations import deferred_norm as module
from pwlu_det.activations.deferred_norm import DeferredNorm, DeferringBatchNorm2d
from pwlu_det.benchmark.networks import convert

pytestmark = pytest.mark.skipif("cpu" not in module.DEVICES, reason="there are no kernels")

C = 4
X = torch.randn(2, C, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls(monkeypatch):
    """The activations that the op is called with, and the number of tensors that are added."""
    return record_calls(monkeypatch, lambda activation, added: (activation, len(added)))


def make(network, activation=PWLU):
    torch.manual_seed(0)
    net = network(num_classes=5)
    if activation is not None:
        convert(net, activation)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
    return net.double()


def leavings(model, *inputs):
    """Output, gradients and buffers after a call."""
    model.zero_grad()
    y = model(*inputs)
    y.sin().sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return {"y": y.detach()} | {f"grad of {n}": p.grad for n, p in model.named_parameters()} | state


def assert_alike(model, reference, *inputs):
    actual, expected = leavings(model, *inputs), leavings(reference, *inputs)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value is not None:
            scale = 1 + float(value.abs().max())  # some gradients are 0 but for rounding
            torch.testing.assert_close(actual[name], value, rtol=1e-8, atol=1e-9 * scale, msg=name)


IMAGES = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("network, activation, number", [
    (resnet18, PWLU, 20),
    (resnet18, None, 20),
    (mobilenet_v3_small, PWLU, 23),
    (mobilenet_v3_small, Swish, 23),
], ids=["resnet18", "resnet18-relu", "mobilenet", "mobilenet-swish"])  # fmt: skip
def test_networks_of_torchvision(network, activation, number, calls):
    reference = make(network, activation)
    model = copy.deepcopy(reference)
    # Dropout in the classifier draws the same numbers for both.
    for net in (model, reference):
        net.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout) else None)
    random, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    names = fuse_norms(model, IMAGES, fuse_relu=activation is None)
    assert torch.equal(torch.get_rng_state(), random) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(names) == number and all(type(model.get_submodule(n)) is DeferringBatchNorm2d for n in names)
    calls.clear()
    assert_alike(model, reference, IMAGES)
    if network is resnet18:
        assert sorted(added for _, added in calls) == [0] * 9 + [1] * 5 + [3] * 3
    assert_alike(model.eval(), reference.eval(), IMAGES)
    assert len(calls) == 2 * (17 if network is resnet18 else number)


class Site(nn.Module):
    """A norm and an activation, and what happens between them."""

    def __init__(self, between=lambda z, x: z, activation=None):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.act = nn.BatchNorm2d(C), activation or PWLU(C)
        self.other = nn.BatchNorm2d(C)
        self.between = between

    def forward(self, x):
        return self.act(self.between(self.norm(x), x))


class WithSecondNorm(Site):
    def forward(self, x):
        z = self.norm(x)
        z += self.other(x.sin())
        return self.act(z)


@pytest.mark.parametrize(
    "between",
    [
        lambda z, x: z,
        lambda z, x: z + x,
        lambda z, x: x + z,
        lambda z, x: torch.add(z, x),
        lambda z, x: z.__iadd__(x),
        lambda z, x: z + x if z.shape == x.shape and z.dtype == x.dtype and z.dim() == 4 else None,
    ],
)
def test_additions(between, calls):
    reference = Site(between).double()
    model = copy.deepcopy(reference)
    assert fuse_norms(model, X.double()) == ["norm"]
    assert_alike(model, reference, X.double())
    assert len(calls) == 2


def test_two_norms(calls):
    reference = WithSecondNorm().double()
    model = copy.deepcopy(reference)
    assert fuse_norms(model, X.double()) == ["norm", "other"]
    assert_alike(model, reference, X.double())
    assert calls == [("pwlu", 5), ("pwlu", 3)]
    model.other.eval(), reference.other.eval()  # one has the statistics of the batch, the other has not
    assert_alike(model, reference, X.double())
    assert len(calls) == 2


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * grad * x**2


OTHERS = {
    "another function": lambda z, x: z.sin(),
    "an operator": lambda z, x: 2 * z - z[:1] * (z > 0),
    "an added number": lambda z, x: z + 1,
    "broadcast": lambda z, x: z + x[:1, :, :1, :1],
    "three terms": lambda z, x: z + x + x,
    "in place": lambda z, x: z.mul_(2),
    "in a list": lambda z, x: torch.cat([z, x]),
    "used twice": lambda z, x: z + z.mean(),
    "added twice": lambda z, x: (z + x) + (z + x),
    "detached": lambda z, x: z.detach() + x,
    "not torch's function": lambda z, x: Cube.apply(z),
    "without gradients": lambda z, x: z.requires_grad * z,
}


@pytest.mark.parametrize("between", OTHERS.values(), ids=OTHERS)
def test_any_other_use_keeps_the_norm(between, calls):
    reference = Site(between).double()
    model = copy.deepcopy(reference)
    assert fuse_norms(model, X.double()) == []
    assert type(model.norm) is nn.BatchNorm2d and vars(model.norm).keys() == vars(reference.norm).keys()
    calls.clear()
    assert_alike(model, reference, X.double())
    assert not calls


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("between", [b for name, b in OTHERS.items() if "not torch" not in name])
def test_any_other_use_is_possible_later(between, twice):
    """Also after the activation has used it; running statistics are updated once."""

    class Changing(Site):
        def forward(self, x):
            z = self.norm(x)
            if len(x) == 1:
                return self.act(z)
            return self.act(z) + (self.act(self.between(z, x)[:1]) if twice else 0 * z)

    reference = Changing(between).double()
    model = copy.deepcopy(reference)
    assert fuse_norms(model, X[:1].double()) == ["norm"]
    if between is not OTHERS["in place"]:  # which torch forbids after an activation has saved its input
        assert_alike(model, reference, X.double())


def test_a_norm_whose_output_is_used_twice_is_kept():
    class Twice(Site):
        def forward(self, x):
            z = self.norm(x)
            return self.act(z) + z

    assert fuse_norms(Twice(), X) == []
    assert fuse_norms(Site(lambda z, x: x), X) == []  # not used at all


def test_hooks_and_modes_call_the_modules(calls):
    model = Site().double()
    reference = copy.deepcopy(model)
    fuse_norms(model, X.double())
    calls.clear()
    seen = []
    handle = model.norm.register_forward_hook(lambda module, args, output: seen.append(type(output)))
    assert_alike(model, reference, X.double())
    assert seen == [torch.Tensor] and not calls
    handle.remove()
    assert_alike(model, reference, X.double())
    assert len(calls) == 1
    inside = nn.Sequential(copy.deepcopy(model.norm))
    inside.register_forward_hook(lambda module, args, output: seen.append(output))
    inside(X.double())
    assert isinstance(seen[-1], DeferredNorm) and seen[-1].tensor().shape == X.shape


def test_copies_files_and_conversion_to_sync_bn(calls):
    model = Site()
    fuse_norms(model, X)
    model.between = None
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        calls.clear()
        other.between = lambda z, x: z
        other(X)
        assert len(calls) == 1
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(model).norm) is nn.SyncBatchNorm


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_tracing_compilation_and_export_see_the_norm(calls):
    model = Site().eval()
    model.between = nn.Identity()
    model.forward = lambda x: model.act(model.norm(x))
    fuse_norms(model, X)
    expected = model(X)
    calls.clear()
    for traced in (
        torch.jit.trace(model, X, check_trace=False),
        torch.compile(model, fullgraph=True, backend="aot_eager"),
    ):
        torch.testing.assert_close(traced(X), expected)
    assert not calls


def test_without_gradients_and_with_them():
    model = Site()
    fuse_norms(model, X)
    with torch.no_grad():
        z = model.norm(X)
    assert not model.act(z).grad_fn.next_functions[0][0]  # as if the norm had been computed there


def test_a_model_that_fails_is_left_as_it_was():
    def fail(z, x):
        raise KeyError("mine")

    model = Site(fail)
    with pytest.raises(KeyError, match="mine"):
        fuse_norms(model, X)
    assert type(model.norm) is nn.BatchNorm2d and model.training
