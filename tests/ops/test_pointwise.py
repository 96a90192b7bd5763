import numpy as np
import oracle_activations as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pwlu_det import ops
from pwlu_det.ops.pointwise import TABLE

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MASKS = ((True, True), (True, False), (False, True))
SHAPES = ((6, 3), (4, 3, 5), (2, 3, 4, 3), (2, 3, 2, 4, 3))
ORACLES = {
    **{name: getattr(oracle, name) for name in TABLE},
    "pau, layer-wise": oracle.pau,
}
every_op = pytest.mark.parametrize("case", ORACLES)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def op_of(case):
    return getattr(ops, case.split(",")[0])


def make_parameters(case, dtype=torch.float32):
    """Different values for each channel and coefficient, with the thresholds of SReLU in order."""
    sizes = {"C": 3, "P": 1 if "layer-wise" in case else 3, "S": 2}
    parameters = []
    for label, dims in TABLE[case.split(",")[0]].items():
        shape = [sizes.get(symbol) or int(symbol) for symbol in dims.split()]
        shift = {"left": -1.0, "right": 1.0}.get(label, 0.2)
        parameters.append((torch.rand(shape) - 0.5 + shift).to(dtype).requires_grad_())
    return parameters


def make_input(shape, dtype=torch.float32):
    """Values in [-4, 4], no closer to each other or to a hinge than the step of the numerical derivative."""
    return (torch.randn(shape) * 1.5).clamp(-4, 4).to(dtype)


def as_numpy(tensor):
    return oracle.wide(tensor.detach().double().numpy())


def check(case, x, parameters):
    """Compare the output and gradients with the oracle, and return them."""
    op, function = op_of(case), ORACLES[case]
    x = x.detach().requires_grad_()
    y = op(x, *parameters)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, torch.empty_like(x).stride())
    grad = torch.randn(x.shape).to(x.dtype)
    grads = torch.autograd.grad(y, (x, *parameters), grad)
    arrays = [as_numpy(t) for t in (x, *parameters)]
    # A few rounding errors in float32 (float64), then one in the dtype of x.
    unit = 40 * torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
    rounding = unit + torch.finfo(x.dtype).eps
    expected = function(*arrays)
    np.testing.assert_allclose(
        as_numpy(y), expected, rtol=rounding, atol=unit * np.abs(expected).max(initial=0)
    )
    for actual, wanted, source in zip(
        grads, oracle.gradients(function, arrays, as_numpy(grad)), (x, *parameters)
    ):
        assert (actual.shape, actual.dtype) == (source.shape, source.dtype)
        scale = np.abs(wanted).max(initial=0) + 10  # gradients of parameters are sums that may cancel
        tolerance = (rounding if source is x else unit + torch.finfo(source.dtype).eps, unit * scale + 1e-9)
        np.testing.assert_allclose(as_numpy(actual), wanted, *tolerance)
    return y, grads


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_op
def test_output_and_gradients_match_the_papers(case, dtype):
    check(
        case,
        make_input((2, 3, 4, 3), dtype),
        make_parameters(case, torch.promote_types(dtype, torch.float32)),
    )


@pytest.mark.parametrize("shape", SHAPES[:2] + SHAPES[3:], ids=str)
@every_op
def test_any_number_of_dimensions(case, shape):
    check(case, make_input(shape, torch.float64), make_parameters(case, torch.float64))


@every_op
def test_gradcheck(case):
    x = make_input((2, 3, 5), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(op_of(case), (x, *make_parameters(case, torch.float64)))


@every_op
def test_layouts_and_strides(case):
    parameters = make_parameters(case)
    x = make_input((2, 3, 6, 4))
    y = op_of(case)(x, *parameters)
    for view in (
        x.to(memory_format=torch.channels_last),
        x[:, :, ::2, 1:],
        x.transpose(2, 3),
        x[:1].expand(2, -1, -1, -1),
    ):
        view = view.detach().requires_grad_()
        actual = op_of(case)(view, *parameters)
        assert actual.stride() == torch.empty_like(view).stride()
        torch.testing.assert_close(actual, op_of(case)(view.contiguous(), *parameters))
        grad = torch.randn(1, 1, 1, 1).expand_as(actual)
        torch.testing.assert_close(
            torch.autograd.grad(actual, (view, *parameters), grad),
            torch.autograd.grad(op_of(case)(view.contiguous(), *parameters), (view, *parameters), grad),
        )
    assert y.is_contiguous()


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0)], ids=str)
@every_op
def test_empty_input(case, shape):
    parameters = make_parameters(case)
    x = torch.empty(shape, requires_grad=True)
    y = op_of(case)(x, *parameters)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_op
def test_opcheck(case, dtype):
    parameters = make_parameters(case)
    x = make_input((2, 3, 4, 5), dtype).to(memory_format=torch.channels_last)
    op, backward = (
        getattr(torch.ops.pwlu_det, op_of(case).__name__ + suffix) for suffix in ("", "_backward")
    )
    torch.library.opcheck(op, (x.clone().requires_grad_(), *parameters))
    for output_mask in MASKS:
        arguments = torch.ones_like(x), x, *(p.detach() for p in parameters)
        torch.library.opcheck(backward, (*arguments, output_mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@every_op
def test_dtypes_follow_the_input_and_the_parameters(case, dtype):
    x = make_input((2, 3, 4), dtype).requires_grad_()
    for of_parameters in (torch.float32, torch.float64, torch.bfloat16):
        parameters = make_parameters(case, of_parameters)
        with torch.autocast("cpu", torch.bfloat16):
            y = op_of(case)(x, *parameters)
        assert y.dtype == dtype
        assert torch.equal(y, op_of(case)(x, *parameters))
        grads = torch.autograd.grad(y.float().sum(), (x, *parameters))
        assert [g.dtype for g in grads] == [dtype] + [of_parameters] * len(parameters)


@pytest.mark.parametrize("case", [name for name in ORACLES if name != "slaf"])
def test_results_overflow_only_where_the_exact_result_does(case):
    for dtype, largest in ((torch.float16, 6e4), (torch.bfloat16, 1e18), (torch.float32, 1e18)):
        parameters = [p.detach().div(4).requires_grad_() for p in make_parameters(case)]
        x = torch.tensor([-1.0, -0.5, -1e-3, 1e-3, 0.5, 1.0]).mul(largest).to(dtype)
        x = x[:, None].repeat(1, 3).requires_grad_()
        y = op_of(case)(x, *parameters)
        exact = ORACLES[case](*(as_numpy(t) for t in (x, *parameters))).astype(np.float64)
        expected = as_numpy(torch.from_numpy(exact).to(dtype))
        np.testing.assert_allclose(as_numpy(y), expected, rtol=1e-5 + torch.finfo(dtype).eps, atol=1e-3)
        grads = torch.autograd.grad(y, (x, *parameters), torch.full_like(y, 2.0**-10))
        assert all(g.isfinite().all() for g in grads), dtype


@st.composite
def sites(draw):
    """An op, parameters and an input in float64 of very different magnitudes: powers of two, and zeros."""
    case = draw(st.sampled_from(sorted(ORACLES)))
    size = st.builds(lambda e, sign: sign * 2.0**e, st.integers(-20, 3), st.sampled_from([-1, 1]))
    parameters = [p.detach().double() for p in make_parameters(case)]
    for parameter in parameters:
        values = draw(st.lists(size | st.just(0.0), min_size=parameter.numel(), max_size=parameter.numel()))
        parameter.copy_(torch.tensor(values).view(parameter.shape))
    return case, torch.tensor(draw(st.lists(size, min_size=12, max_size=12))).double().view(4, 3), parameters


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sites())
def test_random_parameters_and_input(site):
    """Zeros, crossed thresholds and any signs: equal up to rounding of the largest term."""
    case, x, parameters = site
    y = op_of(case)(x, *parameters)
    arrays = [as_numpy(t) for t in (x, *parameters)]
    scale = max(1, *(np.abs(a).max() for a in arrays)) ** 4  # of a polynomial of degree 3
    np.testing.assert_allclose(as_numpy(y), ORACLES[case](*arrays), rtol=1e-12, atol=1e-13 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_pau_where_powers_of_x_overflow(dtype):
    """The maximum of float16 is 65,504, which x^5 exceeds at x = 10; Q may have only low powers."""
    numerator = torch.tensor([[0.5, 1, 0.5, 0.25, 0.5, 0.125], [0, 1, 0, 0, 0, 0.0], [0, 0, 0, 1, 0, 0.0]])
    denominator = torch.tensor([[1, 1, 0.5, 0.25], [0, 0, 0, 0.0], [0, 1, 0, 0.0]])
    x = torch.tensor([-6e4, -3e3, -300, -10, -1, 0, 1, 10, 300, 3e3, 6e4])[:, None].repeat(1, 3).to(dtype)
    x.requires_grad_()
    y = ops.pau(x, numerator, denominator)
    expected = oracle.pau(*(as_numpy(t) for t in (x, numerator, denominator)))
    np.testing.assert_allclose(as_numpy(y), expected, rtol=1e-5 + torch.finfo(dtype).eps)
    y.backward(torch.full_like(y, 2.0**-10))
    assert x.grad.isfinite().all()


def test_nan_affects_only_its_own_element():
    for case in ORACLES:
        parameters, x = make_parameters(case), make_input((2, 3, 5))
        expected = op_of(case)(x, *parameters)
        x[1, 2, 3] = torch.nan
        y = op_of(case)(x, *parameters)
        assert y[1, 2, 3].isnan() and y.isnan().sum() == 1, case
        assert torch.equal(y[~x.isnan()], expected[~x.isnan()]), case


def test_relative_error_of_swish():
    x = torch.linspace(-87, 87, 600_001)[None, None]
    y, exact = as_numpy(ops.swish(x, torch.ones(1))), oracle.swish(as_numpy(x))
    assert np.abs(y / exact - 1)[x.numpy() != 0].max() < 3 * 2.0**-23


def test_swish_vanishes_for_large_negative_input():
    x = torch.tensor([[[-1e2, -1e18, -3e38]]], requires_grad=True)
    y = ops.swish(x, torch.ones(1))
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.abs().max() < 1e-40 and grad.abs().max() < 1e-40


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_results_of_all_16_bit_numbers_are_rounded_once(dtype):
    """They include ties, which round to even, and subnormal numbers, infinities and NaN."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)[None, None]
    for slope in (1.5, 0.75, 1.0):
        slope = torch.full((1,), slope)
        expected = torch.where(x > 0, x.double(), slope.double() * x.double()).to(dtype)
        torch.testing.assert_close(ops.prelu(x, slope), expected, rtol=0, atol=0, equal_nan=True)


def test_right_threshold_of_srelu_takes_precedence():
    x = torch.tensor([[-1.0], [0.0], [1.0]]).double()
    crossed = [torch.tensor([value]).double() for value in (0.5, 3.0, -0.5, 2.0)]
    check("srelu", x, [p.requires_grad_() for p in crossed])


def test_gradients_are_bit_identical_from_run_to_run():
    x = make_input((5, 3, 90, 95)).requires_grad_()
    for case in ORACLES:
        parameters = make_parameters(case)
        first, second = (
            torch.autograd.grad(op_of(case)(x, *parameters).square().sum(), (x, *parameters))
            for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second)), case


@every_op
def test_wrong_arguments_are_named(case):
    op, parameters = op_of(case), make_parameters(case)
    name = op.__name__
    with pytest.raises(ValueError, match=rf"{name}: x has dtype (int64|Long); float32, float64"):
        op(torch.zeros(4, 3, dtype=torch.int64), *parameters)
    with pytest.raises(ValueError, match=rf"{name}: x has shape \[4\]; .*\[B, C, \*\]"):
        op(torch.zeros(4), *parameters)
    for position, label in enumerate(TABLE[name]):
        wrong = list(parameters)
        wrong[position] = torch.zeros(5) if wrong[position].dim() > 1 else torch.zeros(2)
        with pytest.raises(ValueError, match=rf"{name}: {label} has shape .*it must be \[.*C = 3"):
            op(torch.zeros(4, 3), *wrong)


@pytest.mark.parametrize(
    "numerator, denominator",
    [((2, 6), (2, 4)), ((3, 5), (3, 4)), ((3, 6), (1, 4)), ((3, 6), (3, 4, 1))],
    ids=str,
)
def test_pau_takes_one_function_per_layer_or_per_channel(numerator, denominator):
    with pytest.raises(
        ValueError, match=r"pau: (numerator|denominator) has shape .*it must be \[P, [64]\] with C = 3"
    ):
        ops.pau(torch.zeros(4, 3), torch.zeros(numerator), torch.zeros(denominator))


# --- randomized PAU -----------------------------------------------------------------------------


def drawn_coefficients(parameter, x, seed, alpha, skip=0):
    """The numbers that the op draws: for each coefficient in turn, one per element."""
    generator = torch.Generator().manual_seed(int(seed))
    for _ in range(skip):
        torch.rand(x.shape, generator=generator, dtype=x.dtype)
    draws = [torch.rand(x.shape, generator=generator, dtype=x.dtype) for _ in range(parameter.shape[1])]
    return [
        as_numpy(c * (1 + alpha * (2 * u - 1))) for c, u in zip(parameter.detach().T[..., None, None], draws)
    ]


def test_rpau_and_its_gradients_are_those_of_pau_at_the_drawn_coefficients():
    numerator, denominator = make_parameters("pau", torch.float64)
    x = make_input((2, 3, 4, 3), torch.float64).requires_grad_()
    seed, alpha, grad = torch.tensor(7), 0.2, torch.randn(x.shape, dtype=torch.float64)
    y = ops.rpau(x, numerator, denominator, seed, alpha)
    grads = torch.autograd.grad(y, (x, numerator, denominator), grad)
    a = drawn_coefficients(numerator, x, seed, alpha)
    b = drawn_coefficients(denominator, x, seed, alpha, skip=6)
    assert all(np.ptp(c / oracle.column(v, x)) > 0.3 for c, v in zip(a, as_numpy(numerator).T))
    # Each element is a "channel": there are 2 * 3 * 4 * 3 of one value each.
    flat = [
        as_numpy(x).reshape(1, -1),
        np.stack([c.ravel() for c in a], 1),
        np.stack([c.ravel() for c in b], 1),
    ]
    np.testing.assert_allclose(as_numpy(y).ravel(), oracle.pau(*flat).ravel(), rtol=1e-12)
    by_x, by_a, by_b = oracle.gradients(oracle.pau, flat, as_numpy(grad).reshape(1, -1))
    np.testing.assert_allclose(as_numpy(grads[0]).ravel(), by_x.ravel(), rtol=1e-7, atol=1e-9)
    for actual, wanted in zip(grads[1:], (by_a, by_b)):
        per_channel = wanted.reshape(2, 3, 12, -1).sum((0, 2))
        np.testing.assert_allclose(as_numpy(actual), per_channel, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_of_rpau(dtype):
    parameters, x = (
        make_parameters("pau"),
        make_input((2, 3, 4, 5), dtype).to(memory_format=torch.channels_last),
    )
    others = torch.tensor(3), 0.1
    assert ops.rpau(x, *parameters, *others).stride() == x.stride()
    torch.library.opcheck(torch.ops.pwlu_det.rpau, (x.clone().requires_grad_(), *parameters, *others))
    backward = torch.ones_like(x), x, *(p.detach() for p in parameters), *others
    for output_mask in MASKS:
        torch.library.opcheck(torch.ops.pwlu_det.rpau_backward, (*backward, output_mask))
    with pytest.raises(ValueError, match="rpau: numerator has shape"):
        ops.rpau(x, parameters[1], parameters[0], *others)
