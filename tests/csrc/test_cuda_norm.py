"""A norm followed by an activation on CUDA, compiled for the host: against the op on the CPU; sanitizers."""

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
    copy_sources,
    needs_compiler,
)
from cuda_norm import OPS, check, expected_results, make_case
from cuda_pointwise import keep_activations
from norm_cases import CONTENTS

pytestmark = needs_compiler
given_or_not = pytest.mark.parametrize("given", [False, True], ids=["batch", "given"])
each_content = pytest.mark.parametrize("added", CONTENTS)
each_layout = pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "rows"])


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    return Emulation(tmp_path_factory.mktemp("norm"), "norm")


# shape, channels last, offsets of x, grad and output in memory
CASES = {
    "a misaligned batch": ((2, 3, 301), False, (1, 1, 1)),
    "different alignments": ((2, 3, 77), False, (1, 2, 0)),
    "rows": ((2, 34, 70), True),
    "a matrix": ((70, 5, 1), True),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_content
@given_or_not
@pytest.mark.parametrize("activation", ["relu", "pwlu"])
def test_kernels_match_the_op_on_a_cpu(plain, activation, given, added, dtype):
    for shape, *rest in CASES.values():
        case = make_case(activation, added, given, shape, dtype, *rest)
        check(case, FORWARD, plain.run(FORWARD, case))
        check(case, BACKWARD, check_parts(plain, case))


@each_content
@given_or_not
@pytest.mark.parametrize("activation", ["relu", "pwlu"])
def test_several_items(plain, activation, given, added):
    case = make_case(activation, added, given, (3, 1, 9001))
    check(case, FORWARD, plain.run(FORWARD, case))
    first, second = plain.run(BACKWARD, case), plain.run(BACKWARD, case)
    check(case, BACKWARD, first)
    assert all(map(torch.equal, first, second))


@pytest.fixture(scope="session")
def pointwise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("norm_pointwise")
    sources = copy_sources(folder, "double", "BFloat16")
    keep_activations(sources, "AconC", "Pau", "Apl")
    return Emulation(folder, "norm_pointwise", "-O0", sources=sources)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@each_content
@pytest.mark.parametrize("activation", ["acon_c", "pau", "slaf"])  # SLAF of 3: in double, by a simple loop
def test_pointwise_kernels_match_the_op_on_a_cpu(pointwise, activation, added, dtype):
    for given in (False, True):
        for shape, *rest in [CASES["a misaligned batch"], CASES["rows"]]:
            case = make_case(activation, added, given, shape, dtype, *rest)
            check(case, FORWARD, pointwise.run(FORWARD, case))
            check(case, BACKWARD, check_parts(pointwise, case))


def weights_near_zero(call):
    for weight in (call.norm[0], *call.added[1:2]):
        weight[:] = torch.tensor([0.0, -1.5, 1e-9])


def constant_channel(call):
    call.x[:, 1] = 7.25


def crossed_bounds(call):
    left, right = call.parameters[1:3]
    left[0], right[0], left[1] = 1.0, -1.0, right[1]


def large_mean(call):
    call.x += 300


CHANGES = {f.__name__: f for f in (weights_near_zero, constant_channel, crossed_bounds, large_mean)}


@each_layout
@given_or_not
@each_content
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_special_channels(plain, change, added, given, channels_last):
    case = make_case("pwlu", added, given, channels_last=channels_last, change=change)
    check(case, FORWARD, plain.run(FORWARD, case))
    check(case, BACKWARD, plain.run(BACKWARD, case), 1e-4)


@each_layout
@each_content
def test_one_element_per_channel(plain, added, channels_last):
    case = make_case("relu", added, shape=(1, 3, 1), channels_last=channels_last)
    y, mean, var, *_ = plain.run(FORWARD, case)
    assert torch.equal(mean, case.x.flatten()) and not var.any()
    check(case, FORWARD, [y, mean, var, *_])
    by_x, by_weight, *_ = plain.run(BACKWARD, case)
    assert not by_x.any() and not by_weight.any()


@pytest.mark.parametrize("n, channels_last", [(64, False), (64, True), (200, False), (2400, False)])
def test_many_intervals(plain, n, channels_last):
    """Sums in several windows of bins, of which only the first writes dz; or without a table."""

    def more_intervals(call):
        generator = torch.Generator().manual_seed(0)
        points = torch.randn(call.x.shape[1], n + 1, generator=generator)
        call.parameters[0] = points.cumsum(1) / n

    shape = (1, 1, 5) if n == 2400 else (1, 2, 77)
    case = make_case("pwlu", "norm", False, shape, channels_last=channels_last, change=more_intervals)
    check(case, FORWARD, plain.run(FORWARD, case))
    check(case, BACKWARD, check_parts(plain, case), 1e-4)


@pytest.mark.parametrize("activation", ["relu", "pwlu"])
def test_given_statistics_spread_no_nan(plain, activation):
    """An infinite x in one element: 0 * inf in another term must not make the others NaN."""
    case = make_case(activation, "tensor", given=True)
    clean = plain.run(BACKWARD, case)
    case.x[0, 1, 5], case.grad[0, 1, 5] = torch.inf, 0.0
    by_x = plain.run(BACKWARD, case)[0]
    assert by_x[0, 1, 5] == 0
    case.x[0, 1, 5] = 0
    elsewhere = torch.ones_like(by_x, dtype=torch.bool)
    elsewhere[0, 1, 5] = False
    assert torch.equal(by_x[elsewhere], clean[0][elsewhere])


@each_layout
def test_functions_that_do_not_fit_in_float(plain, channels_last):
    """dz and the sums of the norm are computed again, in double."""

    def wide_bounds(call):
        call.parameters[1][1], call.parameters[2][1] = -2e38, 3e38

    case = make_case("pwlu", "norm", channels_last=channels_last, change=wide_bounds)
    by_x, by_weight, by_bias, *_ = plain.run(BACKWARD, case)
    wanted = expected_results(case, BACKWARD)
    for actual, exact in zip((by_x, by_weight, by_bias), wanted):
        torch.testing.assert_close(actual.double(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


# --- sanitizers ---------------------------------------------------------------------------------------


def run_all(emulation, cases, ops=OPS):
    runs = [(op, case) for case in cases for op in ops]
    for (op, case), results in zip(runs, emulation.run_program(runs, timeout=100)):
        check(case, op, results)


SANITIZED = [
    make_case("relu", "nothing", shape=(2, 3, 301), offsets=(1, 1, 1)),
    make_case("relu", "tensor", True, shape=(1, 34, 9), channels_last=True),
    make_case("pwlu", "norm", shape=(2, 3, 301), offsets=(1, 1, 1)),
    make_case("pwlu", "tensor", shape=(3, 34, 5), channels_last=True),
    make_case("pwlu", "nothing", True, shape=(1, 2, 20)),
]
RACING = [
    make_case("relu", "norm", shape=(1, 1, 37)),
    make_case("pwlu", "norm", shape=(1, 2, 7), channels_last=True),
]


def test_address_and_undefined_behavior_sanitizer(tmp_path):
    run_all(Emulation(tmp_path, "norm", *UNDEFINED, sources=copy_sources(tmp_path)), SANITIZED)


def test_thread_sanitizer(tmp_path):
    emulation = Emulation(tmp_path, "norm", *THREADS, sources=copy_sources(tmp_path))
    run_all(emulation, RACING, (FORWARD, BACKWARD))


def test_pointwise_kernels_under_sanitizers(tmp_path):
    sources = copy_sources(tmp_path)
    keep_activations(sources, "AconC")
    cases = [
        make_case("acon_c", "norm", shape=(2, 3, 301), offsets=(1, 1, 1)),
        make_case("slaf", "tensor", True, shape=(1, 34, 9), channels_last=True),
    ]
    run_all(Emulation(tmp_path, "norm_pointwise", *UNDEFINED, sources=sources), cases)
