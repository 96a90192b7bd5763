"""Derivatives other than the first in reverse mode: double backward, forward mode, ``torch.func``."""

import pytest
import torch
from op_arguments import ALL_OPS, make_arguments, overload
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from pwlu_det import ops

OPS = [name for name in ALL_OPS if f"{name}_backward" in ALL_OPS and name != "frelu_convolve"]
every_op = pytest.mark.parametrize("name", OPS)
# No closer to each other or to a kink than the step of the numerical derivative.
STEPS = torch.tensor([-7.3, -2.1, -1.7, -0.6, -0.3, 0.4, 0.7, 1.9, 2.6, 6.4], dtype=torch.float64)


def make_function(name, dtype=torch.float64, **replaced):
    """An op as a function of its differentiable arguments, and small values for these."""
    arguments = {**make_arguments(name, dtype), **replaced}
    if name == "rpau" and "alpha" not in replaced:
        arguments["alpha"] = 0.0  # as its gradients are those of PAU at the drawn coefficients
    channels = 2
    for label, value in arguments.items():
        if label == "x" and label not in replaced:
            arguments[label] = STEPS[:8].reshape(1, channels, 2, 2).to(dtype)
        elif label in ("slopes", "offsets"):
            arguments[label] = value[:, :channels]
        elif isinstance(value, torch.Tensor) and value.dim() and label not in replaced:
            arguments[label] = value[:channels]
    labels = [k for k, v in arguments.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]

    def function(*values):
        output = overload(name)(*{**arguments, **dict(zip(labels, values))}.values())
        return output[0] if isinstance(output, tuple) else output

    return function, [arguments[label].detach().clone().requires_grad_() for label in labels]


@every_op
def test_first_and_second_derivatives_are_those_of_differences(name):
    function, values = make_function(name)
    batched = name != "rpau"  # random numbers inside vmap are an error of torch
    options = {"check_batched_forward_grad": batched, "check_batched_grad": batched}
    assert torch.autograd.gradcheck(function, values, check_forward_ad=True, **options)
    assert torch.autograd.gradgradcheck(function, values)
    options = {"check_fwd_over_rev": True, "check_rev_over_rev": False, "check_undefined_grad": False}
    assert torch.autograd.gradgradcheck(function, values, **options)


@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (0.39997, 0.2)], ids=["", "crossed"])
def test_layer_wise_pwlu(bounds):
    left, right = (torch.tensor([b], dtype=torch.float64) for b in bounds)
    points = torch.randn(1, 5, dtype=torch.float64)
    function, values = make_function(
        "pwlu",
        points=points,
        left_bound=left,
        right_bound=right,
        left_slope=left * 0.3,
        right_slope=right * 0.2,
    )
    if bounds[0] < bounds[1]:
        assert torch.autograd.gradgradcheck(function, values)
    else:  # 0.4 lies between B_L and B_L + 1e-4; the width is constant in y, but not in its derivatives
        check_against_backward(function, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradient_penalty_of_prelu(dtype):
    """The derivative of (d prelu / dx)^2 + p by p is 2p + 1 left of 0, and 1 right of it."""
    x = torch.tensor([[-2.0], [3.0]], dtype=dtype, requires_grad=True)
    p = torch.tensor([0.5], requires_grad=True)
    (slope,) = torch.autograd.grad(ops.prelu(x, p).sum(), x, create_graph=True)
    assert slope.flatten().tolist() == [0.5, 1.0]
    penalty = slope.float()[0].square().sum() + p.sum()
    assert torch.autograd.grad(penalty, p, retain_graph=True)[0].tolist() == [2.0]
    penalty = slope.float()[1].square().sum() + p.sum()
    assert torch.autograd.grad(penalty, p)[0].tolist() == [1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_mixed_derivatives_of_pwlu(dtype):
    """Between two points, dy/dx = (Y_1 - Y_0) N / (B_R - B_L); outside, it is the outer slope."""
    x = torch.tensor([[-3.0], [0.5], [5.0]], dtype=dtype, requires_grad=True)
    points = torch.tensor([[1.0, 2.0, 8.0]], requires_grad=True)
    others = [torch.tensor([v], requires_grad=True) for v in (-2.0, 2.0, 0.0, 3.0)]
    y = ops.pwlu(x, points, *others)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert slope.flatten().tolist() == [0.0, 3.0, 3.0]
    variables = (x, points, *others)
    by_row = [
        torch.autograd.grad(s, variables, retain_graph=True, allow_unused=True) for s in slope.flatten()
    ]
    found = [[0.0 if g is None else g.flatten().tolist() for g in row[1:]] for row in by_row]
    none = [0.0, 0.0, 0.0]
    assert found[0] == [none, [0.0], [0.0], [1.0], [0.0]]
    # 6 * 2 / 4 = 3: its derivative is 1/2 by a point, and 3 / 4 by a bound.
    assert found[1] == [[0.0, -0.5, 0.5], [0.75], [-0.75], [0.0], [0.0]]
    assert found[2] == [none, [0.0], [0.0], [0.0], [1.0]]
    assert all(row[0] is None or not row[0].any() for row in by_row)  # the second derivative by x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_second_derivative_of_swish(dtype):
    x = torch.tensor([[-1.5], [0.0], [0.5]], dtype=dtype, requires_grad=True)
    beta = torch.tensor([2.0])
    (first,) = torch.autograd.grad(ops.swish(x, beta).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    s = torch.sigmoid(2 * x.detach().double())
    expected = 4 * s * (1 - s) * (1 + x.detach().double() * (1 - 2 * s))
    torch.testing.assert_close(second.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert torch.autograd.grad(second.sum(), x)[0].isfinite().all()  # and a third


def check_against_backward(function, values):
    """The plain definition, which all other derivatives come from, has the kernels' first derivatives."""
    y = function(*values)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    expected = torch.autograd.grad(y, values, direction)
    detached = [v.detach() for v in values]
    output, pull = vjp(function, *detached)
    tolerance = {"rtol": 2e-6, "atol": 2e-5} if y.dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(output, y.detach(), **tolerance)
    torch.testing.assert_close(pull(direction), expected, **tolerance)
    for i, value in enumerate(detached):
        tangents = [torch.zeros_like(v) for v in detached]
        tangents[i] = torch.randn(value.shape, generator=torch.Generator().manual_seed(i)).to(value.dtype)
        _, tangent = jvp(function, tuple(detached), tuple(tangents))
        assert tangent.dtype == y.dtype and tangent.stride() == y.stride()
        torch.testing.assert_close(
            (tangent * direction).sum(), (expected[i] * tangents[i]).sum(), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_op
def test_derivatives_choose_the_side_of_the_backward_op_at_kinks(name, dtype):
    """At 0 and 1, at hinges, thresholds, bounds and points, which inputs in bfloat16 often meet."""
    kinks = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5]).repeat(2, 1)
    x = torch.stack([kinks, kinks.flip(1)], 1).reshape(2, 2, 2, 4).to(dtype)
    at = {"left": (-1.0, -0.5), "right": (1.0, 0.5), "left_bound": (-2.0, -1.0), "right_bound": (2.0, 1.0)}
    replaced = {k: torch.tensor(v, dtype=dtype) for k, v in at.items() if k in make_arguments(name)}
    if name == "apl":
        replaced["offsets"] = torch.tensor([[0.0, 1.0], [0.5, -1.0], [2.0, 0.0]], dtype=dtype)
    if name == "frelu_inference":  # a convolution that returns x: ties everywhere
        weight = torch.zeros(2, 1, 3, 3, dtype=dtype)
        weight[:, :, 1, 1] = 1
        replaced |= {"weight": weight, "bias": torch.zeros(2, dtype=dtype)}
    check_against_backward(*make_function(name, dtype, x=x, **replaced))
    check_against_backward(*make_function(name, dtype, x=x.to(memory_format=torch.channels_last), **replaced))


def test_second_derivatives_of_pau_at_0_and_1():
    """Q = 1 + 3 x^2 at 0, where |x| has no derivative; at 1, the evaluation changes its scale."""
    numerator = torch.tensor([[1.0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    denominator = torch.tensor([[0.0, 3.0, 0, 0]], dtype=torch.float64)
    x = torch.tensor([[0.0], [1.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(ops.pau(x, numerator, denominator).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    # (1 / Q)'' = (-6 Q + 2 (6 x)^2) / Q^3
    assert second.flatten().tolist() == pytest.approx([-6.0, 48 / 64, 48 / 64])


def test_derivatives_of_rpau_are_those_of_pau_at_the_drawn_coefficients():
    check_against_backward(*make_function("rpau", alpha=0.3))


class Seen(TorchDispatchMode):
    """Keeps the names of the package's ops that are called."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "pwlu_det":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("create_graph", [False, True])
@every_op
def test_first_derivatives_are_always_the_kernels(name, create_graph):
    function, values = make_function(name)
    with Seen() as seen:
        torch.autograd.grad(function(*values).sum(), values, create_graph=create_graph)
    assert seen.names == [name, f"{name}_backward"]


@every_op
def test_transforms_of_torch_func(name):
    function, values = make_function(name)
    x, *parameters = (v.detach() for v in values)
    last, rest = parameters[-1], parameters[:-1]

    def loss(x, last):
        return function(x, *rest, last).pow(3).sum()

    variables = values[0], values[-1]
    expected = torch.autograd.grad(loss(*variables), variables)
    torch.testing.assert_close(grad(loss, (0, 1))(x, last), expected)
    if name == "rpau":
        return  # the rest uses vmap
    by_autograd = torch.autograd.functional.hessian(loss, (x, last))
    torch.testing.assert_close(hessian(loss, (0, 1))(x, last), by_autograd)
    torch.testing.assert_close(jacfwd(grad(loss, (0, 1)), (0, 1))(x, last), by_autograd)
    xs, lasts = torch.stack([x, -x, 2 * x]), torch.stack([last, 2 * last, -last])
    for dims in (0, None), (None, 0), (0, 0):
        pairs = [(xs[i] if dims[0] == 0 else x, lasts[i] if dims[1] == 0 else last) for i in range(3)]
        mapped = (xs if dims[0] == 0 else x, lasts if dims[1] == 0 else last)
        for f in (lambda x, last: function(x, *rest, last)), grad(loss, 1):
            torch.testing.assert_close(vmap(f, dims)(*mapped), torch.stack([f(*pair) for pair in pairs]))


def test_transforms_check_the_arguments():
    with pytest.raises(ValueError, match=r"prelu: slope has shape \[1\]; .* must be \[C\] with C = 3"):
        jvp(lambda x: ops.prelu(x, torch.ones(1)), (torch.ones(2, 3),), (torch.ones(2, 3),))


def test_tangents_of_the_incoming_gradient_alone():
    """Reverse mode whose incoming gradient has a tangent, which the op itself has not seen."""
    x, slope = torch.tensor([[-2.0, 3.0]], requires_grad=True), torch.tensor([0.5, 0.5], requires_grad=True)
    with forward_ad.dual_level():
        incoming = forward_ad.make_dual(torch.ones(1, 2), torch.tensor([[10.0, 20.0]]))
        of_x, of_slope = torch.autograd.grad(ops.prelu(x, slope), (x, slope), incoming)
        assert forward_ad.unpack_dual(of_x).tangent.tolist() == [[5.0, 20.0]]
        assert forward_ad.unpack_dual(of_slope).tangent.tolist() == [-20.0, 0.0]


def test_phase_1_of_pwlu():
    x = torch.tensor([[-2.0], [0.0], [3.0]], requires_grad=True)
    parameters = [torch.randn(1, 3), *torch.randn(4, 1)]

    def function(x):
        return ops.pwlu_phase1(x, *parameters)[0]

    assert jvp(function, (x.detach(),), (torch.full((3, 1), 5.0),))[1].flatten().tolist() == [0.0, 0.0, 5.0]
    (first,) = torch.autograd.grad(function(x).pow(3).sum(), x, create_graph=True)
    assert torch.autograd.grad(first.sum(), x)[0].flatten().tolist() == [0.0, 0.0, 18.0]
    by_func = hessian(lambda x: function(x).pow(3).sum())(x.detach())
    assert by_func.reshape(3, 3).tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 18.0]]


@pytest.mark.parametrize("name", ["prelu", "pwlu", "frelu"])
def test_forward_mode_under_compile(name):
    function, values = make_function(name, torch.float32)
    values = tuple(v.detach() for v in values)

    def tangent(*values):
        return jvp(function, values, values)[1]

    def dual(*values):
        with forward_ad.dual_level():
            pairs = [forward_ad.make_dual(v, v) for v in values]
            return forward_ad.unpack_dual(function(*pairs)).tangent

    expected = tangent(*values)
    assert expected.any()
    for program in tangent, dual:
        torch.compiler.reset()
        compiled = torch.compile(program, backend="aot_eager")
        torch.testing.assert_close(compiled(*values), expected)


def test_empty_input():
    x = torch.empty(0, 3, requires_grad=True)
    slope = torch.ones(3, requires_grad=True)
    (of_slope,) = torch.autograd.grad(ops.prelu(x, slope).sum(), slope, create_graph=True)
    assert torch.autograd.grad(of_slope.sum(), x)[0].shape == (0, 3)
