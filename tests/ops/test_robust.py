"""The accuracy of PWLU for numbers of any magnitude, compared with a reference in extended precision."""

from itertools import product

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pwlu_det.ops import pwlu

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = tuple(product(("contiguous", "channels_last"), ("channel-wise", "layer-wise")))
F64_LIMIT = 1e150
"""The largest float64 parameter that must work: there is no wider type to compute in."""

pytestmark = pytest.mark.skipif(
    np.finfo(np.longdouble).eps == np.finfo(np.float64).eps, reason="needs a long double wider than double"
)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids="-".join)
each_wise = pytest.mark.parametrize("wise", ["channel-wise", "layer-wise"])
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def examples(count):
    return settings(max_examples=count, deadline=None, derandomize=True)


def as_array(tensor):
    return tensor.detach().double().numpy()


def to_input(elements, shape, dtype, layout):
    """``[P, n]`` to a tensor ``[B, C, H, W]``, clipped to the range of the dtype."""
    limit = torch.finfo(dtype).max
    x = torch.from_numpy(np.ascontiguousarray(oracle.from_function(elements, shape))).clamp(-limit, limit)
    memory_format = torch.channels_last if layout[0] == "channels_last" else torch.contiguous_format
    return x.to(dtype).contiguous(memory_format=memory_format)


def functions_of(parameters):
    return [oracle.WideFunction(*arrays) for arrays in zip(*map(as_array, parameters))]


def run(x, grad, parameters):
    """The output, the gradient of x, and those of the parameters, ``[P, N+5]``."""
    inputs = [t.detach().requires_grad_() for t in (x, *parameters)]
    y = pwlu(*inputs)
    grad_x, grad_points, *others = torch.autograd.grad(y, inputs, grad)
    assert y.stride() == grad_x.stride() == x.stride()
    return y.detach(), grad_x, torch.cat([grad_points, torch.stack(others, dim=1)], dim=1)


# --- accuracy -----------------------------------------------------------------------------------


def ordinary_case(size, n, layout, seed, dtype=torch.float32):
    """Parameters as in training, and x away from the knots, so that its bin is unambiguous."""
    shape = (2, 5, size // 10, 1)
    rng = np.random.default_rng(seed)
    count = 5 if layout[1] == "channel-wise" else 1
    left = rng.normal(size=count) - 3
    right = left + rng.uniform(1, 8, count)
    numbers = rng.normal(size=(count, n + 1)), left, right, *rng.normal(size=(2, count))
    own = torch.promote_types(dtype, torch.float32)
    parameters = [torch.from_numpy(p).to(own) for p in numbers]
    left, right = (as_array(p)[:, None] for p in parameters[1:3])
    k = rng.integers(-1, n + 1, (count, size // count))
    t = rng.uniform(0.01, 0.99, k.shape)
    return to_input(left + (k + t) * (right - left) / n, shape, dtype, layout), parameters


@each_layout
@pytest.mark.parametrize("n", [1, 16, 23, 64])
def test_float32_output_is_within_two_ulp(n, layout):
    """In units in the last place of the largest of y and the values at the two ends of the bin."""
    x, parameters = ordinary_case(40_000, n, layout, seed=n)
    functions = functions_of(parameters)
    y = oracle.per_function(as_array(pwlu(x, *parameters)), len(functions))
    for f, xs, ys in zip(functions, oracle.per_function(as_array(x), len(functions)), y):
        k = f.bins(xs)
        exact = f.outputs(xs, k)
        largest = np.maximum.reduce([abs(exact), abs(f.Y_start[k + 1]), abs(f.Y_end[k + 1])])
        unit = np.spacing(largest.astype(np.float32))
        assert (np.abs(ys - exact) / unit).max() <= 2


def sum_in_parts(rows, *arrays):
    """Sums over elements, without storing all of ``[n, N+5]`` at once."""
    size = 2**14
    return sum(rows(*(a[i : i + size] for a in arrays)).sum(0) for i in range(0, len(arrays[0]), size))


def assert_gradients_are_exact(x, grad, parameters, unit):
    """Accurate in both layouts, and bit-identical if they are computed again."""
    functions = functions_of(parameters)
    elements, gs = (oracle.per_function(as_array(t), len(functions)) for t in (x, grad))
    arrays = [(g, xs, f.bins(xs)) for f, xs, g in zip(functions, elements, gs)]
    exact = np.stack([sum_in_parts(f.gradients, *a) for f, a in zip(functions, arrays)])
    scale = np.stack([sum_in_parts(f.scales, *a) for f, a in zip(functions, arrays)])
    for memory_format in (torch.contiguous_format, torch.channels_last):
        inputs = [t.contiguous(memory_format=memory_format) for t in (x, grad)]
        first, again = (run(*inputs, parameters) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again))
        assert np.all(np.abs(as_array(first[2]) - exact) <= unit * scale)


@each_wise
def test_float32_parameter_gradients(wise):
    """Within 1e-6 of the sum of the magnitudes of the terms of each gradient.

    For a point, this is the sum of |g| over the elements of its two intervals (and beyond an outer bound);
    for a bound, the sum of |g K_k|, weighted between the bounds; for an outer slope, the sum of |g (x - B)|.
    It is not a sum over the whole channel.
    """
    x, parameters = ordinary_case(500_000, 16, ("contiguous", wise), seed=1)
    assert_gradients_are_exact(x, torch.randn_like(x) + 0.1, parameters, 1e-6)


@each_wise
@pytest.mark.parametrize("bin", [3, 6], ids="bin {}".format)
def test_float32_parameter_gradients_of_one_g_in_one_bin(bin, wise):
    """The bound of the test above in the worst case, where all terms are added to one sum.

    With a constant g, as from a mean, the rounding errors of the additions have the same sign, each up to
    half a unit: n additions in float32 have an error of up to n / 2**26. This g comes closest to that.
    """
    _, parameters = ordinary_case(10, 6, ("contiguous", wise), seed=2)
    functions = functions_of(parameters)
    t = np.random.default_rng(0).uniform(0.01, 0.99, (len(functions), 500_000 // len(functions)))
    elements = np.stack([f.B_L + (bin + row) * f.width / f.N for f, row in zip(functions, t)]).astype(float)
    x = to_input(elements, (2, 5, 50_000, 1), torch.float32, ("contiguous", wise))
    assert_gradients_are_exact(x, torch.full_like(x, 1.9851837), parameters, 1e-6)


# --- numbers of any magnitude -------------------------------------------------------------------


def draw_sizes(draw, limit, count):
    sizes = [0.0, 1e-30, 1e-3, 1.0, 1e3, 1e8, min(1e30, limit), limit]
    return np.array([draw(st.sampled_from(sizes)) for _ in range(count)])


def elements_near(rng, size, left, right, n, dtype):
    """Knots and adjacent numbers, the bounds, numbers between and beyond them, and the dtype's limits."""
    info = np.finfo(np.float32) if dtype != torch.float64 else np.finfo(np.float64)
    width = np.maximum(right - left, oracle.MIN_WIDTH)
    knots = left + rng.integers(-1, n + 2, size) / n * width
    knots = knots.clip(info.min, info.max).astype(info.dtype)
    ends = (
        np.array([1, 0.5, info.tiny / info.max, info.smallest_subnormal / info.max, 0])
        * torch.finfo(dtype).max
    )
    choices = [
        knots,
        np.nextafter(knots, info.max),
        np.nextafter(knots, info.min),
        left + rng.uniform(-1, 2, size) * width,
        rng.choice([left, right], size),
        rng.choice([-1, 1], size) * 10 ** rng.uniform(-30, np.log10(torch.finfo(dtype).max), size),
        rng.choice([-1, 1], size) * rng.choice(ends, size),
    ]
    return np.choose(rng.integers(0, len(choices), size), choices)


@st.composite
def extreme_cases(draw):
    """x, the gradient of y, and parameters, all finite; the sizes are drawn for each function."""
    dtype = draw(st.sampled_from(DTYPES))
    layout = draw(st.sampled_from(LAYOUTS))
    shape = tuple(draw(st.integers(1, most)) for most in (2, 4, 6, 9))
    n = draw(st.sampled_from([1, 2, 16, 23, 40, 1024]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = shape[1] if layout[1] == "channel-wise" else 1
    own = torch.promote_types(dtype, torch.float32)
    limit = float(torch.finfo(own).max) if own == torch.float32 else F64_LIMIT

    def signed(size, *more):
        exact_size = draw(st.booleans())  # not smaller, like the differences of alternating points
        part = 1 if exact_size else rng.uniform(0, 1, (*more, count))
        return rng.choice([-1, 1], (*more, count)) * part * size

    widths = [-limit, -2.0, 0.0, 5e-5, 1e-4, 1e-3, 6.0, 1e6, min(1e30, limit), limit]
    points = signed(draw_sizes(draw, limit, count), n + 1).T
    left = signed(draw_sizes(draw, limit, count))
    right = np.clip(left + np.array([draw(st.sampled_from(widths)) for _ in range(count)]), -limit, limit)
    slopes = signed(draw_sizes(draw, limit, count), 2)
    parameters = [torch.from_numpy(np.ascontiguousarray(p)).to(own) for p in (points, left, right, *slopes)]
    left, right = map(as_array, parameters[1:3])
    elements = [elements_near(rng, np.prod(shape) // count, *ends, n, dtype) for ends in zip(left, right)]
    x = to_input(np.stack(elements), shape, dtype, layout)
    # In float64, sums of the largest values overflow, so its g is such that the sums stay small.
    sizes = [2.0**-12] if dtype == torch.float64 else [2.0**-12, 1.0, torch.finfo(dtype).max / 8]
    g = rng.normal(size=(count, np.prod(shape) // count)) * draw(st.sampled_from(sizes))
    return x, to_input(g, shape, dtype, layout), parameters


def check_function(f, x, g, dtype, own, y, grad_x, grads):
    """Check one function, with x and g ``[n]``.

    A knot is accurate to a few units of the kernel's rounding, so for an x that close to a knot, the line of
    the adjacent bin is also correct. Gradients are compared relative to sums of magnitudes, as in the tests
    above.
    """
    eps, tiny = np.longdouble(torch.finfo(own).eps), np.longdouble(torch.finfo(own).smallest_normal)
    in_double = 8 * np.finfo(np.float64).eps * (abs(f.B_L) + abs(f.B_L + f.width) + f.width)
    unclear = 8 * eps * f.width + in_double
    k = f.bins(x)
    low, high = f.bins(x - unclear), f.bins(x + unclear)
    candidates = [k, low, np.maximum(k - 1, low), np.minimum(k + 1, high), high]

    def fit(bins):
        K, span = f.K[bins + 1], abs(x) + abs(f.B_L) + abs(f.B_L + f.width)
        exact = f.outputs(x, bins)
        lines = abs(f.Y_start[bins + 1]) + abs(f.Y_end[bins + 1]) + abs(exact)
        tolerance = 8 * eps * lines + abs(K) * in_double + tiny * eps * (1 + span)
        slope_tolerance = 8 * eps * abs(g * K) + tiny * eps * (1 + abs(g))
        return exact, tolerance, g * K, slope_tolerance

    info = torch.finfo(dtype)
    subnormal = np.longdouble(info.smallest_normal) * info.eps
    exact, tolerance, exact_dx, dx_tolerance = map(np.stack, zip(*map(fit, candidates)))
    for actual, exacts, tolerances, name in (
        (y, exact, tolerance, "y"),
        (grad_x, exact_dx, dx_tolerance, "x"),
    ):
        tolerances = tolerances + info.eps * abs(exacts) + subnormal
        fits = np.all(abs(exacts) + tolerances <= float(info.max), axis=0)
        near = np.any(abs(actual - exacts) <= tolerances, axis=0)
        assert np.all(near | ~fits), (name, x[fits & ~near], actual[fits & ~near], exacts[:, fits & ~near])

    unit = (64 + (4 * f.N if own == torch.float64 else 0)) * eps + in_double * f.N / f.width
    tolerance = unit * f.scales(g, x, k).sum(0) + tiny
    for other in candidates[1:]:
        moved = other != k
        arrays = g[moved], x[moved]
        tolerance += unit * f.scales(*arrays, other[moved]).sum(0)
        tolerance += abs(f.gradients(*arrays, other[moved]) - f.gradients(*arrays, k[moved])).sum(0)
    exact = f.gradients(g, x, k).sum(0)
    fits = abs(exact) + tolerance <= float(torch.finfo(own).max)
    near = abs(grads - exact) <= tolerance
    assert np.all(near | ~fits), (np.flatnonzero(fits & ~near), grads[fits & ~near], exact[fits & ~near])


@examples(300)
@given(extreme_cases())
def test_results_are_accurate_where_the_exact_value_fits(case):
    x, grad, parameters = case
    y, grad_x, grads = run(x, grad, parameters)
    functions = functions_of(parameters)
    elements = [
        oracle.per_function(as_array(t), len(functions)).astype(np.longdouble) for t in (x, grad, y, grad_x)
    ]
    for f, xs, g, ys, dx, own in zip(functions, *elements, as_array(grads)):
        check_function(f, xs, g, x.dtype, parameters[0].dtype, ys, dx, own)


# --- numbers that are not finite ----------------------------------------------------------------


@each_layout
@each_dtype
@pytest.mark.parametrize("n", [16, 64])
def test_nan_and_infinity_affect_only_their_own_elements(n, dtype, layout):
    """No other bit of y or of x's gradient changes. If the slope is 0, y is the end point's value."""
    clean, parameters = ordinary_case(1_000, n, layout, seed=3, dtype=dtype)
    points, *_, left_slope, right_slope = parameters
    left_slope[0] = 0
    right_slope[-1] = 0
    grad = torch.empty_like(clean).copy_(torch.randn(clean.shape))
    y, grad_x, _ = run(clean, grad, parameters)
    for special in (torch.nan, torch.inf, -torch.inf):
        places = torch.rand(clean.shape) < 0.05
        x = torch.where(places, special, clean)
        actual, actual_grad, _ = run(x, grad, parameters)
        assert torch.equal(actual[~places], y[~places])
        assert torch.equal(actual_grad[~places], grad_x[~places])
        if special != special:
            expected = torch.full_like(points[:, 0], torch.nan)
        elif special > 0:
            expected = torch.where(right_slope == 0, points[:, -1], right_slope * special)
        else:
            expected = torch.where(left_slope == 0, points[:, 0], left_slope * special)
        expected = expected.to(dtype).view(-1, 1, 1).expand_as(x)
        torch.testing.assert_close(actual[places], expected[places], rtol=0, atol=0, equal_nan=True)


@each_layout
@each_dtype
@pytest.mark.parametrize(
    "position", range(5), ids=["points", "left_bound", "right_bound", "left_slope", "right_slope"]
)
def test_nan_parameter_gives_nan(position, dtype, layout):
    """In every y that depends on it (for a bound, all of its function), and in its function's gradients."""
    x, parameters = ordinary_case(1_000, 16, layout, seed=4, dtype=dtype)
    y, _, grads = run(x, torch.ones_like(x), parameters)
    elements = oracle.per_function(as_array(x), len(parameters[0]))
    bins = np.stack([f.bins(xs) for f, xs in zip(functions_of(parameters), elements)])
    parameters[position][(0, 5) if position == 0 else 0] = torch.nan
    actual, _, actual_grads = run(x, torch.ones_like(x), parameters)
    touched = np.isin(bins, {0: [4, 5], 3: [-1], 4: [16]}.get(position, range(-1, 17)))
    touched[1:] = False
    touched = torch.from_numpy(oracle.from_function(touched, x.shape).copy())
    assert torch.equal(actual.isnan(), touched)
    torch.testing.assert_close(actual[~touched], y[~touched])
    assert actual_grads[0, 17:19].isnan().all() or position > 2
    torch.testing.assert_close(actual_grads[1:], grads[1:])


@each_layout
def test_partial_sums_may_overflow_float32(layout):
    """The result does not overflow if the exact total does not, since every partial sum is in float64."""
    largest = torch.finfo(torch.float32).max
    count = 3 if layout[1] == "channel-wise" else 1
    x = torch.empty(2, 3, 20, 50).contiguous(
        memory_format=torch.channels_last if layout[0] == "channels_last" else torch.contiguous_format
    )
    x.fill_(2.0)
    grad = torch.empty_like(x)
    # Each half of the memory has one sign, so that any order of summation overflows.
    halves = oracle.from_function(np.repeat([[0.5, -0.5]], 3, 0).repeat(1000, 1).reshape(count, -1), x.shape)
    grad.copy_(torch.from_numpy(halves.copy()) * largest)
    parameters = torch.zeros(count, 5), *(torch.full((count,), v) for v in (-1.0, 1.0, 0.0, 1.0))
    *_, grads = run(x, grad, parameters)
    assert torch.equal(grads, torch.zeros_like(grads))
    grad[0, :, 0, 0] *= -1
    *_, grads = run(x, grad, parameters)
    total = -largest if layout[1] == "channel-wise" else -torch.inf
    assert grads[:, 4].tolist() == grads[:, 8].tolist() == [total] * count
