import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pwlu_cases import NAMES, as_numpy, assert_near, check, make_input, make_parameters

from pwlu_det.ops import pwlu, pwlu_phase1

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MASKS = ((True, True), (True, False), (False, True))
SHAPES = ((8, 3), (4, 3, 9), (2, 3, 5, 3), (2, 3, 2, 3, 5))

channel_and_layer_wise = pytest.mark.parametrize("num_functions", [3, 1], ids=["channel-wise", "layer-wise"])
quick = settings(max_examples=30, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@channel_and_layer_wise
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 16, 64, 1024])
def test_output_and_gradients_match_the_paper(n, dtype, num_functions):
    parameters = make_parameters(num_functions, n, torch.promote_types(dtype, torch.float32))
    check(make_input((4, 3, 9, 11), parameters, dtype), parameters)


@channel_and_layer_wise
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_number_of_dimensions(shape, num_functions):
    parameters = make_parameters(num_functions, 16)
    check(make_input(shape, parameters), parameters)


@pytest.mark.parametrize("n", [1, 3, 16])
def test_knot_belongs_to_the_interval_on_its_right(n):
    points, left, right, left_slope, right_slope = make_parameters(1, n, torch.float64)
    knots = torch.linspace(left.item(), right.item(), n + 1, dtype=torch.float64)[:, None].requires_grad_()
    y = pwlu(knots, points, left, right, left_slope, right_slope)
    assert torch.equal(y[:, 0], points[0])
    y.sum().backward()
    interval = (right - left) / n
    torch.testing.assert_close(knots.grad[:, 0], torch.cat([points[0].diff() / interval, right_slope]))
    # x = B_L is inside (so K_L has no effect) and x = B_R is outside.
    assert left_slope.grad == 0
    assert right_slope.grad == 0  # x - B_R
    assert torch.equal(points.grad, torch.ones_like(points))


@pytest.mark.parametrize("n", [7, 49])
def test_right_bound_is_outside_even_if_the_interval_length_is_rounded(n):
    """x >= B_R is the third case of equation 1, but (B_R - B_L)/d may round to below N."""
    left = torch.rand(200) - 1
    right = left + torch.rand(200) + 0.5
    parameters = torch.zeros(200, n + 1), left, right, torch.full((200,), 5.0), torch.full((200,), 7.0)
    x = torch.stack([left, right]).requires_grad_()
    pwlu(x, *parameters).sum().backward()
    assert (x.grad[0] == 0).all()
    assert (x.grad[1] == 7).all()


@pytest.mark.parametrize(
    "shape, memory_format",
    [((2, 3, 5, 7), torch.channels_last), ((2, 3, 2, 3, 5), torch.channels_last_3d)],
    ids=["channels_last", "channels_last_3d"],
)
def test_channels_last_is_kept(shape, memory_format):
    parameters = make_parameters(3, 16)
    x = make_input(shape, parameters)
    last = x.to(memory_format=memory_format).requires_grad_()
    y = check(last, parameters)
    assert y.is_contiguous(memory_format=memory_format) and not y.is_contiguous()
    assert torch.equal(y, pwlu(x, *parameters))
    y = pwlu(last, *parameters)
    (grad,) = torch.autograd.grad(y, last, torch.ones_like(y))
    assert grad.is_contiguous(memory_format=memory_format)


VIEWS = {
    "strided": lambda x: x[:, :, ::2, 1:],
    "batch slice": lambda x: x[1:3],
    "transposed": lambda x: x.transpose(2, 3),
    "batch inside": lambda x: x.transpose(0, 2)[:, :, :2],
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_strides(view):
    parameters = make_parameters(3, 16)
    base = make_input((4, 3, 6, 8), parameters)
    x, grad = view(base), view(torch.randn_like(base))
    y = check(x, parameters, grad)
    assert torch.equal(y, pwlu(x.contiguous(), *parameters))


@channel_and_layer_wise
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0), (2, 3, 4, 0)], ids=str)
def test_empty_input(shape, num_functions):
    parameters = make_parameters(num_functions, 16)
    x = torch.empty(shape, requires_grad=True)
    y = pwlu(x, *parameters)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape
    for name, parameter in zip(NAMES[1:], parameters):
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


def test_large_input_has_bit_identical_gradients_from_run_to_run():
    # Half a million elements are more than one thread, block or part handles, so partial sums are combined.
    parameters = make_parameters(3, 4)
    x = make_input((5, 3, 180, 190), parameters)
    check(x, parameters)
    x.requires_grad_()
    grad = torch.randn(x.shape)
    first, *others = (torch.autograd.grad(pwlu(x, *parameters), (x, *parameters), grad) for _ in range(3))
    for other in others:
        for name, a, b in zip(NAMES, first, other):
            assert torch.equal(a, b), name


@channel_and_layer_wise
def test_gradcheck(num_functions):
    parameters = make_parameters(num_functions, 4, torch.float64)
    x = make_input((2, 3, 8), parameters, torch.float64)
    interval = (parameters[2] - parameters[1]).detach() / 4
    # Numerical differences are correct only away from the knots.
    start = parameters[1].detach().view(-1, 1)
    u = ((x - start) / interval.view(-1, 1)).floor() + torch.rand(x.shape, dtype=x.dtype) * 0.6 + 0.2
    x = (start + u * interval.view(-1, 1)).requires_grad_()
    assert ((u < 0).any(), (u > 4).any(), ((u > 0) & (u < 4)).any()) == (True, True, True)
    assert torch.autograd.gradcheck(pwlu, (x, *parameters))
    assert torch.autograd.gradcheck(lambda *inputs: pwlu_phase1(*inputs)[0], (x, *parameters))


@st.composite
def sites(draw):
    """Shapes, N, and bounds that may be close together and far from zero."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 5)), *draw(st.lists(st.integers(1, 6), max_size=3)))
    n = draw(st.integers(1, 64) | st.just(1024))
    num_functions = draw(st.sampled_from([1, shape[1]]))
    torch.manual_seed(draw(st.integers(0, 2**32)))
    center = draw(st.sampled_from([0.0, 1.0, -37.5, 1e4])) * torch.randn(num_functions)
    width = draw(st.sampled_from([1e-3, 0.1, 6.0, 500.0])) * (torch.rand(num_functions) + 0.5)
    points, slopes = torch.randn(num_functions, n + 1), torch.randn(2, num_functions)
    parameters = points, center - width / 2, center + width / 2, *slopes
    return make_input(shape, parameters), parameters


@quick
@given(sites())
def test_output_is_accurate_for_any_bounds(site):
    x, parameters = site
    arrays = [as_numpy(p) for p in parameters]
    elements = oracle.per_function(as_numpy(x), len(arrays[1]))
    expected = oracle.from_function(oracle.forward(elements, *arrays), x.shape)
    # The local coordinate does not lose accuracy: t is exact up to N units of float32 (compare with check).
    unit = (64 + 2 * arrays[0].shape[1]) * torch.finfo(torch.float32).eps
    assert_near(pwlu(x, *parameters), expected, unit, np.abs(arrays[0]).max() + np.abs(expected), "y")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@quick
@given(
    st.sampled_from([1, 16, 1024]),
    st.sampled_from([1e-3, 6.0]),
    st.sampled_from([0.0, -40.0, 1e3]),
    st.sampled_from([0.0, 1.0, -0.5, 1e-3, 100.0]),
)
def test_results_are_finite_where_the_exact_value_is(dtype, n, width, center, slope):
    info = torch.finfo(dtype)
    values = torch.tensor(
        [info.max, info.max / 2, info.tiny, info.tiny / 4, 0.0, center], dtype=torch.float64
    ).to(dtype)
    x = torch.cat([values, -values])[:, None].requires_grad_()
    points = torch.linspace(-3, 3, n + 1)[None].to(torch.promote_types(dtype, torch.float32))
    ends = torch.tensor([[center], [center + width], [slope], [slope]], dtype=points.dtype)
    parameters = [p.requires_grad_() for p in (points, *ends)]
    y = pwlu(x, *parameters)
    arrays = [as_numpy(p) for p in parameters]
    with np.errstate(over="ignore"):  # in float64, the exact value itself may overflow
        expected = oracle.forward(as_numpy(x).T, *arrays).T
    fits = np.abs(expected) < info.max * (1 - info.eps)
    unit = (64 + 2 * n) * torch.finfo(points.dtype).eps + info.eps
    assert np.all(np.abs(as_numpy(y) - expected)[fits] <= unit * (3 + np.abs(expected[fits])))
    # The incoming gradients are small, so that none of the exact sums overflows.
    grads = torch.autograd.grad(y, (x, *parameters), torch.full_like(y, 2.0**-10))
    for name, grad in zip(NAMES, grads):
        assert grad.isfinite().all(), name


@pytest.mark.parametrize("level", [False, True], ids=["", "outer slopes 0"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_affects_only_its_own_element(dtype, level):
    parameters = make_parameters(3, 16, torch.promote_types(dtype, torch.float32))
    if level:  # as on the left of ReLU; 0 * NaN must not become 0
        parameters[3:] = torch.zeros(2, 3, dtype=parameters[0].dtype)
    clean = make_input((2, 3, 5), parameters, dtype)
    x = clean.clone()
    x[1, 2, 3] = torch.nan
    results = []
    for inputs in (clean.requires_grad_(), x.requires_grad_()):
        y = pwlu(inputs, *parameters)
        results.append((y, *torch.autograd.grad(y, inputs, torch.ones_like(y))))
    elsewhere = ~x.isnan()
    assert results[1][0][1, 2, 3].isnan()
    for expected, actual in zip(*results):
        assert torch.equal(actual[elsewhere], expected[elsewhere])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "slope, left, right",
    [(2.0, -torch.inf, torch.inf), (-2.0, torch.inf, -torch.inf), (0.0, 0.5, -0.25), (-0.0, 0.5, -0.25)],
)
def test_infinity_follows_the_outer_slope_or_gives_the_end_point(slope, left, right, dtype):
    slopes = torch.full((1,), slope)
    points, bound = torch.tensor([[0.5, 9.0, -0.25]]), torch.tensor([3.0])
    x = torch.tensor([[-torch.inf], [torch.inf]], dtype=dtype, requires_grad=True)
    y = pwlu(x, points, -bound, bound, slopes, slopes)
    assert y.flatten().tolist() == [left, right]
    y.sum().backward()
    assert x.grad.flatten().tolist() == [slope, slope]


@pytest.mark.parametrize("width", [0.0, -1e-5, -2.0, 5e-5], ids=str)
def test_crossed_bounds_are_treated_as_1e_4_apart(width):
    points, left, _, *slopes = make_parameters(3, 4)
    parameters = points, left, (left + width).detach().requires_grad_(), *slopes
    near = left.detach() + torch.tensor([[-1e-3], [1e-5], [3e-5], [6e-5], [9e-5], [2e-4]])
    x = torch.cat([near, torch.tensor([[-9.0], [9.0], [1e4]]).expand(3, 3)])
    y = check(x, parameters)
    assert y.isfinite().all()


@pytest.mark.parametrize("position", range(5), ids=NAMES[1:])
@pytest.mark.parametrize("function", [pwlu, pwlu_phase1])
def test_parameter_of_the_wrong_shape_is_named(function, position):
    parameters = make_parameters(3, 16)
    parameters[position] = torch.zeros(2, 17) if position == 0 else torch.zeros(2)
    with pytest.raises(ValueError, match=f"{function.__name__}: {NAMES[1 + position]} has shape"):
        function(torch.zeros(4, 3, 5), *parameters)


@pytest.mark.parametrize(
    "points", [torch.zeros(3, 1), torch.zeros(17), torch.zeros(1, 3, 17)], ids=lambda p: str(p.shape)
)
def test_points_need_two_dimensions_and_an_interval(points):
    with pytest.raises(ValueError, match=r"points has shape .* it must be \[P, N\+1\] with C = 3"):
        pwlu(torch.zeros(4, 3), points, *make_parameters(3, 16)[1:])


@pytest.mark.parametrize("function", [pwlu, pwlu_phase1])
def test_wrong_input_is_named(function):
    parameters = make_parameters(1, 16)
    with pytest.raises(ValueError, match=r"x has dtype (int64|Long); float32, float64, float16 and bfloat16"):
        function(torch.zeros(4, 3, dtype=torch.int64), *parameters)
    with pytest.raises(ValueError, match=r"x has shape \[4\]; .*\[B, C, \*\]"):
        function(torch.zeros(4), *parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_does_not_change_the_dtype(dtype):
    parameters = make_parameters(3, 16)
    x = make_input((2, 3, 4, 4), parameters, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y = pwlu(x, *parameters)
        z = pwlu_phase1(x, *parameters)[0]
    assert (y.dtype, z.dtype) == (dtype, dtype)
    assert torch.equal(y, pwlu(x, *parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    parameters = make_parameters(3, 4)
    x = make_input((2, 3, 4, 5), parameters, dtype).to(memory_format=torch.channels_last)
    ops = torch.ops.pwlu_det
    torch.library.opcheck(ops.pwlu, (x.clone().requires_grad_(), *parameters))
    torch.library.opcheck(ops.pwlu_phase1, (x.clone().requires_grad_(), *parameters))
    backward = torch.ones_like(x), x, *(p.detach() for p in parameters)
    for output_mask in MASKS:
        torch.library.opcheck(ops.pwlu_backward, (*backward, output_mask))


def bits(tensor):
    """For comparing NaN and the sign of 0, which ``torch.equal`` cannot do."""
    return tensor.detach().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_phase1_is_relu_bit_for_bit(dtype):
    info = torch.finfo(dtype)
    special = [0.0, -0.0, torch.nan, torch.inf, -torch.inf, info.tiny / 2, -info.tiny / 2, info.max, info.min]
    x = torch.cat([torch.tensor(special, dtype=torch.float64), torch.randn(3 * 7 - 9)]).to(dtype)
    x = x.view(1, 3, 7).requires_grad_()
    stock = x.detach().clone().requires_grad_()
    parameters = make_parameters(3, 16)
    y, expected = pwlu_phase1(x, *parameters)[0], stock.relu()
    assert torch.equal(bits(y), bits(expected))
    grad = torch.randn(x.shape).to(dtype)
    y.backward(grad)
    expected.backward(grad)
    assert torch.equal(bits(x.grad), bits(stock.grad))
    # Zeros, not None: a DDP parameter without a gradient would make the processes wait forever.
    for name, parameter in zip(NAMES[1:], parameters):
        assert parameter.grad is not None and torch.equal(parameter.grad, torch.zeros_like(parameter)), name


@channel_and_layer_wise
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_phase1_computes_the_moments_of_its_input(shape, dtype, num_functions):
    # The mean is far from zero, so that a mean of squares would lose the variance.
    x = (torch.randn(shape) * 0.5 + 60).to(dtype).requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)
    y, mean, deviation = pwlu_phase1(x, *make_parameters(num_functions, 16, wide))
    assert y.requires_grad and not mean.requires_grad and not deviation.requires_grad
    assert mean.dtype == deviation.dtype == wide
    elements = oracle.per_function(as_numpy(x), num_functions)
    expected = elements.mean(1)
    # A hundred numbers of about 60 are summed in float32 (float64), regardless of the dtype of x.
    unit = 8 * torch.finfo(wide).eps
    np.testing.assert_allclose(as_numpy(mean), expected, rtol=unit)
    squares = ((elements - expected[:, None]) ** 2).sum(1)
    np.testing.assert_allclose(as_numpy(deviation), squares, rtol=60 * unit)


def test_phase1_preserves_the_layout_and_accepts_empty_input():
    parameters = make_parameters(3, 16)
    x = make_input((2, 3, 5, 7), parameters).to(memory_format=torch.channels_last)
    y, *moments = pwlu_phase1(x, *parameters)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(moments, list(pwlu_phase1(x.contiguous(), *parameters)[1:]))
    y, *moments = pwlu_phase1(torch.empty(0, 3, 4), *parameters)
    assert y.shape == (0, 3, 4)
    assert torch.equal(torch.stack(moments), torch.zeros(2, 3))
