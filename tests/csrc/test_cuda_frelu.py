"""Funnel ReLU's CUDA kernels, compiled for the host: the equations, sanitizers and mutation tests."""

import numpy as np
import oracle_activations as oracle
import pytest
import torch
from cuda_emulation import (
    DTYPES,
    THREADS,
    UNDEFINED,
    Emulation,
    Fault,
    as_numpy,
    check_parts,
    copy_sources,
    needs_compiler,
)
from cuda_frelu import (
    BACKWARD,
    CONVOLVE,
    INFERENCE,
    INFERENCE_BACKWARD,
    NORM_SUMS,
    NORMALISE,
    ONLY_CONVOLUTION,
    ONLY_X,
    OPS,
    PARTS,
    check,
    filters,
    make_case,
)
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = needs_compiler


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    return Emulation(tmp_path_factory.mktemp("frelu"), "frelu")


# shape, channels last, offsets of x, grad and output in memory
CASES = {
    "one pixel": ((1, 1, 1, 1),),
    "images of one pixel": ((37, 5, 1, 1),),
    "a row": ((2, 2, 1, 9),),
    "a column": ((2, 2, 9, 1),),
    "odd": ((2, 3, 7, 5), False, (1, 1, 1)),
    "a wide row of several items": ((1, 2, 1, 9001),),
    "a tall column": ((1, 1, 70, 1),),
    "several items": ((1, 2, 200, 91), False, (0, 1, 2)),
    "several images per item": ((40, 1, 2, 3),),
    "channels last, one channel": ((2, 1, 6, 4), True),
    "channels last, more channels than a warp": ((2, 34, 11, 13), True),
    "channels last, a row": ((1, 5, 1, 150), True, (1, 0, 0)),
    "channels last, a tall image": ((1, 3, 67, 2), True),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_op_matches_its_equation(plain, case, dtype, op):
    shape, *rest = case
    case = make_case(shape, dtype, *rest)
    check(case, op, plain.run(op, case))


@pytest.mark.parametrize("op", PARTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_partial_gradients_equal_the_full_backward(plain, case, dtype, op):
    shape, *rest = case
    check_parts(plain, make_case(shape, dtype, *rest), op, PARTS[op])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 36), st.integers(1, 40), st.integers(1, 20)),
    dtype=st.sampled_from(list(DTYPES)),
    channels_last=st.booleans(),
    offsets=st.tuples(*[st.integers(0, 3)] * 3),
    seed=st.integers(0, 99),
    op=st.sampled_from(OPS),
)
def test_random_shapes_layouts_and_alignments(plain, shape, dtype, channels_last, offsets, seed, op):
    case = make_case(shape, dtype, channels_last, offsets, seed)
    check(case, op, plain.run(op, case))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
def test_combined_gradients_match_numerical_differentiation(plain, channels_last):
    """All ops of training together: the norm's statistics depend on every element."""
    case = make_case((2, 2, 4, 3), torch.float64, channels_last)
    conv, *statistics = plain.run(CONVOLVE, case)
    case.saved, case.parameters[2:4] = conv, statistics
    (y,) = plain.run(NORMALISE, case)
    (sums,) = plain.run(NORM_SUMS, case)
    case.parameters[6] = sums / case.x[:, 0].numel()
    gradients = *plain.run(BACKWARD, case), *sums
    arrays = [as_numpy(case.x), *filters(case), *(as_numpy(p) for p in case.parameters[4:6])]
    np.testing.assert_allclose(as_numpy(y), oracle.frelu(*arrays), rtol=0, atol=1e-12)
    expected = oracle.gradients(oracle.frelu, arrays, as_numpy(case.grad))
    for actual, wanted in zip(gradients, expected):
        np.testing.assert_allclose(as_numpy(actual).reshape(wanted.shape), wanted, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_are_accurate_despite_a_large_mean_or_an_outlier(plain, dtype, channels_last):
    for outlier in (False, True):
        case = make_case((2, 3, 50, 20), dtype, channels_last)
        case.parameters[0][:] = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0, 0])  # so that the padding has no effect
        if outlier:
            case.x[:, :, 0, 0] = 3e4
        else:
            case.x[:] = case.x * 0.1 + 1000
        conv, mean, var = plain.run(CONVOLVE, case)
        kept = as_numpy(conv)
        difference = np.abs(as_numpy(mean) - kept.mean((0, 2, 3)))
        assert np.all(difference <= 2e-7 * np.abs(kept.mean((0, 2, 3))) + 1e-6 * kept.std((0, 2, 3)))
        # A thread whose first value is the outlier sums the differences from it in float.
        np.testing.assert_allclose(as_numpy(var), kept.var((0, 2, 3)), rtol=1e-4 if outlier else 1e-5)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_nan_and_infinity_spread_only_to_neighboring_pixels(plain, value, channels_last):
    clean = make_case((2, 3, 6, 7), channels_last=channels_last)
    case = make_case((2, 3, 6, 7), channels_last=channels_last)
    case.x[1, 1, 2, 3] = value
    reached = torch.zeros(case.x.shape, dtype=torch.bool)
    reached[1, 1, 1:4, 2:5] = True
    y, before = (plain.run(INFERENCE, c)[0] for c in (case, clean))
    weight, bias = filters(case)
    expected = torch.from_numpy(
        np.maximum(as_numpy(case.x), oracle.depthwise(as_numpy(case.x), weight, bias))
    )
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert torch.equal(y[~reached], before[~reached])
    # In training, the statistics of the whole channel are affected.
    _, mean, var = plain.run(CONVOLVE, case)
    assert mean.isfinite().tolist() == var.isfinite().tolist() == [True, False, True]
    # The gradient goes to x where x won, which includes comparisons with NaN.
    case.saved = y
    assert plain.run(INFERENCE_BACKWARD, case)[0].isfinite().all()
    case.grad[0, 2, 0, 0] = value
    spread = plain.run(INFERENCE_BACKWARD, case)
    assert [w.isfinite().all().item() for w in spread[2]][:2] == [True, True]


def test_x_gets_the_gradient_on_ties(plain):
    case = make_case((1, 2, 5, 6))
    case.saved = case.x.clone()
    by_x, by_weight, by_bias = plain.run(INFERENCE_BACKWARD, case)
    assert torch.equal(by_x, case.grad) and not by_weight.any() and not by_bias.any()


def test_variance_of_a_constant_channel_is_zero(plain):
    for value in (0.0, 7.3):
        case = make_case((2, 2, 40, 9))
        case.x[:] = value
        case.parameters[0][:] = torch.tensor([0, 0, 0, 0, 1.7, 0, 0, 0, 0])
        assert not plain.run(CONVOLVE, case)[2].any()


# --- sanitizers ---------------------------------------------------------------------------------------

SANITIZED = [
    make_case((2, 3, 7, 5), offsets=(1, 1, 1)),
    make_case((1, 34, 3, 4), channels_last=True),
    make_case((1, 1, 70, 3)),
    make_case((3, 2, 1, 1)),
]
RACING = [make_case((1, 1, 3, 9)), make_case((1, 3, 3, 5), channels_last=True)]


def run_all(emulation, cases):
    runs = [(op, case) for case in cases for op in (*OPS, *ONLY_X, *ONLY_CONVOLUTION)]
    for (op, case), results in zip(runs, emulation.run_program(runs, timeout=100)):
        check(case, op, results)


def test_address_and_undefined_behavior_sanitizer(tmp_path):
    run_all(Emulation(tmp_path, "frelu", *UNDEFINED, sources=copy_sources(tmp_path)), SANITIZED)


def test_thread_sanitizer(tmp_path):
    run_all(Emulation(tmp_path, "frelu", *THREADS, sources=copy_sources(tmp_path)), RACING)


PLAIN = ("-O0", "-g0")  # these faults give wrong results, so that no sanitizer is needed

FAULTS = {
    "a row above the image is read": Fault(
        "frelu_strips.cuh", "strip.above = top > 0", "strip.above = true", PLAIN
    ),
    "a column to the left of the image is read": Fault(
        "frelu_strips.cuh", "strip.left = column > 0", "strip.left = true", PLAIN
    ),
    "a column to the right of the image is read": Fault(
        "frelu_strips.cuh", "unsigned(column) < columns", "true"
    ),
    "a channel beyond the last one": Fault("frelu_strips.cuh", "channel() < channels_;", "true;"),
    "strips beyond the last one": Fault("frelu_strips.cuh", "if (number >= strips_) return;", ""),
    "too little shared memory": Fault("sums.cuh", "kThreads * sizeof", "(kThreads - 1) * sizeof"),
    "sums are added up before they are complete": Fault("sums.cuh", "  __syncthreads();\n", "", PLAIN),
    "strips do not overlap": Fault("frelu_strips.cuh", "strip.rows - !strip.below", "strip.rows - 1", PLAIN),
    "the filter is not flipped": Fault("frelu_strips.cuh", "weight[8 - k], tap", "weight[k], tap", PLAIN),
    "a gradient that is not needed is written": Fault(
        "frelu_backward.cuh", "if (grad_x && strip.has(c))", "if (strip.has(c))", PLAIN
    ),
    "sums that are not needed are written": Fault("frelu_backward.cuh", "  if (!sums) return;\n", "", PLAIN),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault_is_detected(tmp_path, fault):
    sources = copy_sources(tmp_path)
    fault.plant(sources)
    emulation = Emulation(tmp_path, "frelu", *fault.flags, sources=sources)
    emulation.build_program()
    with pytest.raises(AssertionError):
        run_all(emulation, SANITIZED)
