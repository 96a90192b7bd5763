"""PWLU's CUDA kernels, compiled for the host: the paper's equations, and sanitizers."""

import numpy as np
import oracle
import pytest
import torch
from cuda_emulation import (
    BACKWARD,
    DTYPES,
    FORWARD,
    THREADS,
    UNDEFINED,
    Emulation,
    check_parts,
    needs_compiler,
)
from cuda_pwlu import OPS, PwluCase, check, make_case
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = needs_compiler


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    return Emulation(tmp_path_factory.mktemp("plain"), "pwlu")


# shape, N, channels last, offsets of x, grad and output in memory
CASES = {
    "one element": ((1, 1, 1), 16),
    "one interval": ((2, 2, 90), 1),
    "two intervals": ((2, 2, 90), 2),
    "tiny planes": ((7, 3, 2), 16),
    "odd planes": ((40, 3, 49), 16),
    "a misaligned batch": ((2, 3, 301), 16, False, (1, 1, 1)),
    "different alignments": ((2, 3, 301), 16, False, (1, 2, 0)),
    "planes in several items": ((2, 2, 9001), 16),
    "channels in several items": ((90, 1, 100), 16),
    "rows": ((2, 34, 70), 16, True),
    "rows of a few channels": ((1, 3, 600), 2, True),
    "a matrix": ((300, 5, 1), 16, True),
    "windows": ((2, 2, 77), 64),
    "more windows": ((1, 1, 77), 200),
    "windows and rows": ((1, 3, 77), 64, True),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernels_match_the_equations(plain, case, dtype, op):
    shape, n, *rest = case
    case = make_case(shape, n, dtype, *supported(rest, n, dtype))
    check(case, op, plain.run(op, case))


def supported(layout, n, dtype):
    """The layout, or contiguous if the tables are too large for channels last, as the caller does."""
    return [] if layout == [True] and n == 64 and dtype == torch.float64 else layout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_partial_gradients_equal_the_full_backward(plain, case, dtype):
    shape, n, *rest = case
    case = make_case(shape, n, dtype, *supported(rest, n, dtype))
    check_parts(plain, case)
    case.x[0, 0, 0], case.grad[0, -1, -1] = torch.nan, torch.inf  # sums in double
    case.parameters[2][-1] = 1e38  # B_R: this function does not fit in float
    check_parts(plain, case)


@pytest.mark.parametrize("op", OPS)
def test_a_single_row_of_many_items(plain, op):
    case = make_case((1, 1, 33 * 8192 + 3), 4)  # more than 32 items, which 1,024 threads add up
    check(case, op, plain.run(op, case))


@pytest.mark.parametrize("n, dtype", [(4094, torch.float32), (2400, torch.float64)], ids=str)
def test_more_intervals_than_shared_memory_holds(plain, n, dtype):
    case = make_case((1, 1, 33), n, dtype)
    check(case, FORWARD, plain.run(FORWARD, case))
    check(case, BACKWARD, check_parts(plain, case))


def test_too_many_intervals_for_channels_last_are_refused(plain):
    with pytest.raises(AssertionError, match="launcher returned 1"):
        plain.run(FORWARD, make_case((1, 40, 5), 2000, channels_last=True))


def numpy_arrays(case):
    return [p.double().numpy() for p in case.parameters]


def expected_output(case):
    rows = oracle.per_function(case.x.double().numpy(), case.x.shape[1])
    with np.errstate(over="ignore"):
        y = np.where(np.isnan(rows), np.nan, oracle.forward(rows, *numpy_arrays(case)))
    return torch.from_numpy(oracle.from_function(y, case.x.shape).copy())


@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "rows"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("slope", [0.0, 1.0, -0.5, 1e-3])
def test_nan_and_infinity_affect_only_their_own_elements(plain, slope, dtype, channels_last):
    case = make_case((2, 3, 40), 16, dtype, channels_last)
    case.parameters[3][:], case.parameters[4][:] = slope, slope
    info = torch.finfo(dtype)
    clean = plain.run(FORWARD, case)[0]
    special = torch.tensor([info.max, -info.max, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    case.x[1, 1, 10:15] = special
    y = plain.run(FORWARD, case)[0]
    elsewhere = torch.ones_like(y, dtype=torch.bool)
    elsewhere[1, 1, 10:15] = False
    assert torch.equal(y[elsewhere], clean[elsewhere])
    torch.testing.assert_close(
        y[1, 1, 10:15],
        expected_output(case)[1, 1, 10:15].to(dtype),
        equal_nan=True,
        rtol=4 * info.eps,
        atol=1e-5,
    )
    # An infinite sum affects only its own channel; the other channels of the block are recomputed in double.
    gradients = plain.run(BACKWARD, case)
    case.x[1, 1, 10:15] = 0
    for mixed, finite in zip(gradients[1:], plain.run(BACKWARD, case)[1:]):
        torch.testing.assert_close(mixed[[0, 2]], finite[[0, 2]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "rows"])
@pytest.mark.parametrize("n", [16, 64])
def test_channels_that_do_not_fit_in_float(plain, n, channels_last):
    case = make_case((2, 4, 60), n, torch.float32, channels_last)
    points, left, right, *_ = case.parameters
    left[1], right[1] = -2e38, 3e38  # their difference overflows
    points[2] = torch.linspace(-3e38, 3e38, n + 1, dtype=torch.float64).roll(5)  # the slopes overflow
    right[2] = left[2] + 0.125
    case.x[:, 1] = torch.linspace(-3e38, 3e38, 120, dtype=torch.float64).view(2, 60)
    case.x[:, 2] = left[2] + torch.linspace(-0.03, 0.15, 120).view(2, 60)
    case.parameters[3][1:3] = case.parameters[4][1:3] = 0.5
    case.grad *= 1e-10
    expected = expected_output(case)
    y = plain.run(FORWARD, case)[0]
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-5)
    gradients = plain.run(BACKWARD, case)
    assert all(g.isfinite().all() for g in gradients)
    rows, g = (oracle.per_function(t.double().numpy(), 4) for t in (case.x, case.grad))
    table = oracle.table_1(rows, *numpy_arrays(case))
    for actual, row in zip(gradients[1:], table[1:]):
        terms = row * (g[:, None] if row.ndim == 3 else g)
        scale = np.abs(terms).sum(-1) + np.abs(g).sum(-1).reshape(-1, *[1] * (terms.ndim - 2))
        assert np.all(np.abs(actual.double().numpy() - terms.sum(-1)) <= 1e-5 * scale)


@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "rows"])
@pytest.mark.parametrize(
    "dtype, left",
    [(torch.float32, -2e7), (torch.bfloat16, -2e7), (torch.float64, -2e7), (torch.float64, -1e17)],
    ids=str,
)
def test_x_is_compared_with_the_right_bound(plain, dtype, left, channels_last):
    """A rounded quotient (x - B_L) / d puts 0 right of B_R = 1."""
    case = make_case((2, 3, 40), 16, dtype, channels_last)
    for parameter, value in zip(case.parameters, (0.0, left, 1.0, 0.0, 1.0)):
        parameter[:] = value
    case.x[:] = 0
    assert not plain.run(FORWARD, case)[0].any() and not plain.run(BACKWARD, case)[0].any()


def test_gradients_are_finite_where_the_exact_sum_is(plain):
    """g * (x - c) overflows float, but the sum of two such terms does not."""
    case = make_case((1, 2, 64), 4)
    case.x[0, 0, ::2], case.x[0, 0, 1::2] = 3e38, 3e38
    case.grad[0, 0, ::2], case.grad[0, 0, 1::2] = 8.0, -8.0
    gradients = plain.run(BACKWARD, case)
    assert all(g.isfinite().all() for g in gradients)
    assert gradients[5][0] == 0  # of the right slope


@st.composite
def any_cases(draw):
    """Arbitrary bounds, wide or narrow, and random x."""
    n = draw(st.integers(1, 24) | st.sampled_from([64, 100]))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 300)))
    channels_last = draw(st.booleans()) and n <= 64
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    channels = shape[1]
    center = draw(st.sampled_from([0.0, 1.0, -37.5, 1e4])) * torch.randn(channels, generator=random)
    width = draw(st.sampled_from([1e-3, 0.1, 6.0, 500.0])) * (torch.rand(channels, generator=random) + 0.5)
    size = draw(st.sampled_from([1e-3, 1.0, 1e6]))
    points, slopes = (torch.randn(s, generator=random) * size for s in ((channels, n + 1), (2, channels)))
    x = center[:, None] + width[:, None] * (torch.rand(shape, generator=random) * 2 - 1)
    grad = torch.randn(shape, generator=random) + draw(st.sampled_from([0.0, 3.0]))
    offsets = tuple(draw(st.integers(0, 3)) for _ in range(3))
    parameters = [points, center - width / 2, center + width / 2, *slopes]
    return PwluCase(x, grad, parameters, channels_last, offsets)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=any_cases())
def test_output_is_accurate_to_two_ulp_for_any_bounds(plain, case):
    points, left, right, *_ = numpy_arrays(case)
    right = np.maximum(right, left + oracle.MIN_WIDTH)
    n = points.shape[1] - 1
    y = oracle.per_function(plain.run(FORWARD, case)[0].double().numpy(), len(left))
    expected = oracle.per_function(expected_output(case).numpy(), len(left))
    rows = oracle.per_function(case.x.double().numpy(), len(left))
    u = (rows - left[:, None]) / (right - left)[:, None] * n
    k = np.clip(np.floor(u), -1, n).astype(int)
    # Near a knot, float32 may give the neighboring bin; the function is continuous there.
    far = np.abs(u - np.round(u)) > 1e-5 * n
    ends = np.maximum(*(np.abs(np.take_along_axis(points, np.clip(k + i, 0, n), 1)) for i in (0, 1)))
    unit = np.spacing(np.maximum(np.abs(expected), ends).astype(np.float32)).astype(np.float64)
    assert np.all((np.abs(y - expected) <= 2 * unit)[far])
    assert np.all(np.abs(y - expected) <= 1e-4 * n * np.abs(points).max() + 2 * unit)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 400)),
    n=st.integers(1, 24) | st.just(64),
    channels_last=st.booleans(),
    mean=st.sampled_from([0.0, 0.1, 1 / 3]),
    offsets=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)),
    seed=st.integers(0, 99),
)
def test_gradients_are_accurate_to_a_millionth(plain, shape, n, channels_last, mean, offsets, seed):
    case = make_case(shape, n, torch.float32, channels_last, offsets, seed)
    if mean:
        case.grad[:] = mean  # every addition has the same rounding error
    check(case, BACKWARD, plain.run(BACKWARD, case))


# --- sanitizers ---------------------------------------------------------------------------------------

SMALL = [make_case((1, 2, 37), 2, torch.float32), make_case((1, 2, 5), 2, torch.bfloat16, True)]
SANITIZED = [
    *SMALL,
    make_case((1, 1, 300), 16, torch.float32, False, (1, 1, 1)),
    make_case((1, 2, 20), 60, torch.float16),
    make_case((1, 2, 9), 24, torch.float64),
]
NOT_A_NUMBER = make_case((1, 1, 20), 2)
NOT_A_NUMBER.x[0, 0, 7] = torch.nan


def sanitized_cases(cases):
    return [(op, case) for case in cases for op in OPS]


@pytest.fixture(scope="session")
def addresses(tmp_path_factory):
    return Emulation(tmp_path_factory.mktemp("addresses"), "pwlu", *UNDEFINED)


@pytest.fixture(scope="session")
def threads(tmp_path_factory):
    return Emulation(tmp_path_factory.mktemp("threads"), "pwlu", *THREADS)


def test_address_and_undefined_behavior_sanitizer(addresses):
    more = [make_case(s, n, torch.float32, *rest) for s, n, *rest in CASES.values() if s[1] < 30]
    cases = sanitized_cases(SANITIZED + more)
    cases += [(op, NOT_A_NUMBER) for op in OPS]
    for (op, case), results in zip(cases, addresses.run_program(cases)):
        if case is not NOT_A_NUMBER:
            check(case, op, results)


def test_thread_sanitizer(threads):
    cases = [*sanitized_cases(SMALL), *((op, NOT_A_NUMBER) for op in OPS)]
    for (op, case), results in zip(cases, threads.run_program(cases)):
        if case is not NOT_A_NUMBER:
            check(case, op, results)
