"""The pointwise activations' CUDA kernels, compiled for the host: the papers' equations, and sanitizers."""

import numpy as np
import oracle_activations as oracle
import pytest
import torch
from cuda_emulation import (
    BACKWARD,
    DTYPES,
    FORWARD,
    THREADS,
    UNDEFINED,
    Emulation,
    as_numpy,
    check_parts,
    copy_sources,
    needs_compiler,
)
from cuda_pointwise import KINDS, OPS, PointwiseCase, arguments, check, keep_activations, make_case
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = needs_compiler


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    return Emulation(tmp_path_factory.mktemp("plain"), "pointwise")


# shape, channels last, offsets of x, grad and output in memory, whether the table is transposed
CASES = {
    "one element": ((1, 1, 1),),
    "a misaligned batch of odd planes": ((2, 3, 301), False, (1, 1, 1), True),
    "different alignments": ((2, 3, 77), False, (1, 2, 0)),
    "rows": ((2, 34, 70), True, (1, 0, 2), True),
    "a matrix": ((70, 5, 1), True),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_match_the_equations(plain, kind, dtype):
    for shape, *rest in CASES.values():
        case = make_case(kind, shape, dtype, *rest)
        check(case, FORWARD, plain.run(FORWARD, case))
        check(case, BACKWARD, check_parts(plain, case))


@pytest.mark.parametrize("kind", ["swish", "pau", "apl of 2"])
@pytest.mark.parametrize(
    "shape, channels_last",
    [((2, 2, 9001), False), ((90, 1, 100), False), ((1, 3, 600), True), ((1, 1, 5 * 8192 + 3), False)],
    ids=["planes in several items", "channels in several items", "rows in several items", "one function"],
)
def test_several_items(plain, kind, shape, channels_last):
    case = make_case(kind, shape, torch.float32, channels_last)
    check(case, FORWARD, plain.run(FORWARD, case))
    first, second = plain.run(BACKWARD, case), plain.run(BACKWARD, case)
    check(case, BACKWARD, first)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "rows"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_affect_only_their_own_elements(plain, kind, dtype, channels_last):
    case = make_case(kind, (2, 3, 40), dtype, channels_last)
    (clean,), gradients = plain.run(FORWARD, case), plain.run(BACKWARD, case)
    place = torch.zeros(case.x.shape, dtype=torch.bool)
    place[1, 1, 10:13] = True
    case.x[1, 1, 10:13] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype)
    (y,) = plain.run(FORWARD, case)
    assert torch.equal(y[~place], clean[~place])
    assert y[1, 1, 10].isnan()
    by_x, by_table = check_parts(plain, case)
    # The sums of items with such elements are computed in double.
    unit = 1e-5 + torch.finfo(dtype).eps
    torch.testing.assert_close(by_x[~place], gradients[0][~place], rtol=unit, atol=1e-5)
    assert by_x[1, 1, 10].isnan() or kind in (
        "prelu",
        "srelu",
        "apl",
        "apl of 2",
        "mixture",
    )  # piecewise linear
    torch.testing.assert_close(by_table[:, ::2], gradients[1][:, ::2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "slaf" not in kind])
def test_results_overflow_only_where_the_exact_result_does(plain, kind):
    for dtype, largest in ((torch.float16, 6e4), (torch.bfloat16, 1e18), (torch.float32, 1e18)):
        case = make_case(kind, (1, 3, 60), dtype, seed=1)
        case.parameters[0] /= 4
        case.grad[:] = 2.0**-10
        case.x[:] = (torch.linspace(-1, 1, 60) * largest).to(dtype)
        (y,) = plain.run(FORWARD, case)
        exact = getattr(oracle, case.name)(
            *(oracle.wide(as_numpy(case.x)), *arguments(case.name, oracle.wide(as_numpy(case.table))))
        )
        expected = torch.from_numpy(exact.astype(np.float64)).to(dtype)
        torch.testing.assert_close(y, expected, rtol=1e-5 + torch.finfo(dtype).eps, atol=1e-3)
        assert all(g.isfinite().all() for g in check_parts(plain, case)), dtype


@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_pau_where_powers_of_x_overflow(plain, dtype, channels_last):
    numerator = torch.tensor([[0.5, 1, 0.5, 0.25, 0.5, 0.125], [0, 1, 0, 0, 0, 0.0], [0, 0, 0, 1, 0, 0.0]])
    denominator = torch.tensor([[1, 1, 0.5, 0.25], [0, 0, 0, 0.0], [0, 1, 0, 0.0]])
    largest = [3e3, 6e4] if dtype == torch.float16 else [1e6, 3e9, 1e15, 1e30]
    x = torch.tensor([0, 1, 10, 300, *largest])
    x = torch.cat([-x, x]).to(dtype).expand(1, 3, -1)
    table = torch.cat([numerator, denominator], 1).t().contiguous()
    case = PointwiseCase(x.clone(), torch.full_like(x, 2.0**-10), [table], channels_last, name="pau")
    exact = oracle.pau(*(oracle.wide(as_numpy(t)) for t in (x, numerator, denominator)))
    fits = np.abs(exact) < torch.finfo(dtype).max
    y = as_numpy(plain.run(FORWARD, case)[0])
    np.testing.assert_allclose(
        y[fits], exact.astype(float)[fits], rtol=1e-5 + torch.finfo(dtype).eps, atol=1e-30
    )
    if dtype == torch.float16:  # the exact gradients do not overflow
        check(case, BACKWARD, plain.run(BACKWARD, case))


def test_gradients_are_finite_where_the_exact_sum_is(plain):
    case = make_case("prelu", (1, 2, 64))
    case.x[0, 0], case.grad[0, 0, ::2], case.grad[0, 0, 1::2] = -3e38, 8.0, -8.0
    case.parameters[0][:] = 0.25
    by_x, by_slope = plain.run(BACKWARD, case)
    assert by_slope[0, 0] == 0
    assert torch.equal(by_x[0, 0], case.grad[0, 0] / 4)


def test_sigmoid_is_accurate_to_a_few_ulp(plain):
    """Swish with beta = 1. On a GPU, the errors of ex2 and rcp that NVIDIA specifies come on top."""
    x = torch.linspace(-87, 87, 40001).view(1, 1, -1)
    case = PointwiseCase(x, torch.ones_like(x), [torch.ones(1, 1)], name="swish")
    exact = oracle.swish(oracle.wide(as_numpy(x)), oracle.wide([1.0]))
    error = np.abs(as_numpy(plain.run(FORWARD, case)[0]) - exact) / np.spacing(
        np.abs(exact).astype(np.float32)
    )
    assert np.nanmax(error) <= 2.5
    check(case, BACKWARD, plain.run(BACKWARD, case))


@st.composite
def any_cases(draw):
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 200)))
    layout = (draw(st.booleans()), tuple(draw(st.integers(0, 3)) for _ in range(3)), draw(st.booleans()))
    kind, dtype = draw(st.sampled_from(sorted(KINDS))), draw(st.sampled_from(list(DTYPES)))
    return make_case(kind, shape, dtype, *layout, seed=draw(st.integers(0, 99)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=any_cases())
def test_random_shapes_and_layouts(plain, case):
    check(case, FORWARD, plain.run(FORWARD, case))
    check(case, BACKWARD, check_parts(plain, case))


# --- sanitizers ---------------------------------------------------------------------------------------


def sanitized(folder, flags, *elements):
    """An emulation with only a few functions: the kernels are the same templates for all."""
    sources = copy_sources(folder, *elements)
    keep_activations(sources, "Swish", "Pau", "Apl")
    return Emulation(folder, "pointwise", *flags, sources=sources)


def with_nan(case):
    case.x[0, 0, 0] = torch.nan
    return case


def run_all(emulation, cases):
    runs = [(op, case) for case in cases for op in OPS]
    for (op, case), results in zip(runs, emulation.run_program(runs)):
        if not case.x.isnan().any():
            check(case, op, results)


def test_address_and_undefined_behavior_sanitizer(tmp_path):
    kinds = {"pau": torch.float32, "swish": torch.float16, "apl of 2": torch.float32}
    cases = [make_case(k, s, dtype, *rest) for s, *rest in CASES.values() for k, dtype in kinds.items()]
    cases += [make_case("slaf of 20", (1, 34, 9), torch.float64, last) for last in (False, True)]
    cases += [with_nan(make_case("swish", (1, 2, 37), torch.float32, last)) for last in (False, True)]
    run_all(sanitized(tmp_path, UNDEFINED, "double", "Half"), cases)


def test_thread_sanitizer(tmp_path):
    cases = [make_case("pau", (1, 2, 37)), make_case("pau", (1, 33, 3), channels_last=True)]
    cases += [make_case("slaf of 20", (1, 1, 3)), with_nan(make_case("swish", (1, 1, 37)))]
    run_all(sanitized(tmp_path, THREADS), cases)
