"""The pointwise activations' CUDA kernels on a GPU, compared with plain torch in float64 on the CPU."""

import pytest
import torch

from pwlu_det import ops
from pwlu_det.ops import formulas, kernels
from pwlu_det.ops.pointwise import TABLE, broadcast_parameters, parameter_gradient

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(bool(kernels.CUDA_FALLBACK_REASON), reason=kernels.CUDA_FALLBACK_REASON),
]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SIZES = {"apl": 3, "slaf": 4}
CASES = [*((name, SIZES.get(name)) for name in TABLE), ("apl", 5), ("slaf", 3), ("pau, layer-wise", None)]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1] or ''}".strip())


def make_site(case, shape, dtype=torch.float32):
    """x away from zero, and thresholds and offsets (where slopes change) between the values of x."""
    torch.manual_seed(0)
    (name, *layer_wise), size = case[0].split(","), case[1]
    sizes = {"C": shape[1], "P": 1 if layer_wise else shape[1], "S": size}
    parameters = []
    for label, dims in TABLE[name].items():
        symbols = [sizes.get(symbol) or int(symbol) for symbol in dims.split()]
        shift = {"left": -1.0, "right": 1.0}.get(label, 0.2)
        value = torch.rand(symbols) - 0.5 + shift
        if label in ("left", "right", "offsets"):
            value = (value * 8).round() / 8 + 1 / 32
        parameters.append(value.to("cuda", torch.promote_types(dtype, torch.float32)).requires_grad_())
    x = ((torch.randn(shape) * 1.5).clamp(-4, 4) * 8).round() / 8 + 1 / 16
    return getattr(ops, name), x.to("cuda", dtype).requires_grad_(), parameters


def check(op, x, parameters):
    y = op(x, *parameters)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, torch.empty_like(x).stride())
    grad = torch.randn(x.shape, device=x.device).to(x.dtype)
    gradients = torch.autograd.grad(y, (x, *parameters), grad)
    name, shapes = op.__name__, TABLE[op.__name__].values()
    wide_x, wide_grad, *wide = (t.detach().cpu().double() for t in (x, grad, *parameters))
    wide_x, views = broadcast_parameters(wide_x, wide, shapes)
    unit = 16 * torch.finfo(parameters[0].dtype).eps
    rounding = unit + torch.finfo(x.dtype).eps
    expected = op.formula(wide_x, *views)
    scale = float(expected.abs().max())
    torch.testing.assert_close(y.cpu().double(), expected, rtol=rounding, atol=unit * scale)
    by_x, *partials = getattr(formulas, f"{name}_partials")(wide_x, *views)
    scale = float((wide_grad * by_x).abs().max())
    torch.testing.assert_close(
        gradients[0].cpu().double(), wide_grad * by_x, rtol=rounding, atol=unit * scale
    )
    for actual, partial, parameter, dims in zip(gradients[1:], partials, wide, shapes):
        wanted = parameter_gradient(wide_grad, partial, parameter, dims)
        positive = [p.abs() for p in partial] if isinstance(partial, list) else partial.abs()
        terms = parameter_gradient(wide_grad.abs(), positive, parameter, dims)
        assert bool(((actual.cpu().double() - wanted).abs() <= unit * terms + 1e-12).all())
    return [y, *gradients]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(8, 5), (4, 40, 9), (2, 3, 31, 33), (2, 64, 56, 56), (1, 3, 200, 201), (2, 3, 4, 5, 6)], ids=str
)
@every_case
def test_kernels_agree_with_plain_torch(case, shape, dtype):
    op, x, parameters = make_site(case, shape, dtype)
    check(op, x, parameters)
    if len(shape) > 3:
        last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        check(op, x.detach().to(memory_format=last).requires_grad_(), parameters)


@every_case
def test_misaligned_view(case):
    op, x, parameters = make_site(case, (1, 3, 20, 20))
    shifted = torch.empty(x.numel() + 1, device="cuda")[1:].view_as(x).copy_(x.detach()).requires_grad_()
    check(op, shifted, parameters)


@every_case
def test_parameters_of_another_dtype(case):
    op, x, parameters = make_site(case, (2, 3, 9, 11), torch.float16)
    for dtype in DTYPES:
        other = [p.detach().to(dtype).requires_grad_() for p in parameters]
        gradients = torch.autograd.grad(op(x, *other).float().sum(), (x, *other))
        assert [g.dtype for g in gradients] == [torch.float16, *(dtype for _ in other)]


@every_case
def test_gradients_are_bit_identical_from_run_to_run(case):
    op, x, parameters = make_site(case, (4, 64, 100, 100))
    grad = torch.randn_like(x)
    first, *others = (torch.autograd.grad(op(x, *parameters), (x, *parameters), grad) for _ in range(3))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other))


@every_case
def test_cuda_graph(case):
    """Capturing fails if an op synchronizes with the GPU."""
    op, x, parameters = make_site(case, (2, 3, 31, 33))
    backward = getattr(torch.ops.pwlu_det, f"{op.__name__}_backward")
    arguments = [t.detach() for t in (x, *parameters)]
    expected = backward(arguments[0], *arguments, (True, True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = backward(arguments[0], *arguments, (True, True))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(results, expected))


def test_accuracy_of_the_gpu_sigmoid():
    """Within 4 ulp, and 0 if the result would be subnormal."""
    x = torch.linspace(-100, 100, 200001).view(1, 1, -1)
    exact = (x.double() * x.double().sigmoid())[x > -87]
    y = ops.swish(x.cuda(), torch.ones(1, device="cuda")).cpu()
    torch.testing.assert_close(y[x > -87].double(), exact, rtol=4 * 2.0**-23, atol=0)
    assert torch.equal(y[x < -89].abs().max(), torch.tensor(0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_pau_where_powers_of_x_overflow(dtype):
    largest = 6e4 if dtype == torch.float16 else 1e12
    x = torch.linspace(-largest, largest, 4000).to(dtype).view(1, 1, -1)
    numerator = torch.tensor([[0.5, 1, 0.5, 0.25, 0.5, 0.125]])
    denominator = torch.tensor([[1, 1, 0.5, 0.25]])
    expected = ops.pau(x.double(), numerator.double(), denominator.double())
    y = ops.pau(x.cuda(), numerator.cuda(), denominator.cuda()).cpu().double()
    torch.testing.assert_close(y, expected, rtol=1e-5 + torch.finfo(dtype).eps, atol=0)
