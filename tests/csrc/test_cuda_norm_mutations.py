"""Mutation tests of a norm followed by an activation on CUDA: every planted fault must be detected."""

import pytest
import torch
from cuda_emulation import ADDRESSES, BACKWARD, FORWARD, Emulation, Fault, copy_sources, needs_compiler
from cuda_norm import check, expected_results, make_case

pytestmark = needs_compiler
PLAIN = ("-O0", "-g0")  # these faults give wrong results, so that no sanitizer is needed

FAULTS = {
    "the slope of x in its gradient is dropped": Fault(
        "norm.cuh", "body.slope = share * body.norm.rstd * gradients[item.channel];", "", PLAIN
    ),
    "the offset of the gradient is dropped": Fault(
        "norm.cuh", "body.offset = share * gradients[items.channels() + item.channel];", "", PLAIN
    ),
    "a negative weight has the wrong sign": Fault(
        "norm_line.cuh",
        "scale(arrays.weight[channel] * rstd)",
        "scale(std::abs(arrays.weight[channel]) * rstd)",
        PLAIN,
    ),
    "the variance is divided by n - 1": Fault(
        "pwlu_phase1.cu",
        "x, nullptr, count_of(layout), mean",
        "x, nullptr, count_of(layout) - 1, mean",
        PLAIN,
    ),
    "an image is missing in the statistics": Fault(
        "pwlu_phase1.cuh",
        "if (threadIdx.x >= kLanes ||",
        "if (blockIdx.x == 0 || threadIdx.x >= kLanes ||",
        PLAIN,
    ),
    "given statistics make an infinite x a NaN": Fault(
        "norm.cuh", "return batch_statistics ? scaled", "return true ? scaled", PLAIN
    ),
    "x is added where nothing is": Fault(
        "norm_input.cuh", "has_added_(source.added != nullptr)", "has_added_(true)", PLAIN
    ),
    "the added norm's bias is dropped": Fault(
        "norm_input.cuh", "lines.own.bias += lines.other.bias;", "", PLAIN
    ),
    "the added tensor is measured from the mean of x": Fault(
        "norm_input.cuh", "added - lines.other.mean", "added - lines.own.mean", PLAIN
    ),
    "the sums of the norm are not computed again": Fault(
        "pwlu_backward.cuh", "      input.add(x, at, by_x, input_sums);\n", "", PLAIN
    ),
    "too little shared memory": Fault(
        "norm_input.cuh", "kSumsBytes<kNormSums>", "kSumsBytes<kNormSums - 1>", ADDRESSES
    ),
}


def negative_weight(call):
    call.norm[0][0] = -1.5


def infinite_x():
    case = make_case("relu", given=True, shape=(1, 2, 20))
    case.x[0, 1, 5], case.grad[0, 1, 5] = torch.inf, 0.0
    return case


def wide_bounds():
    """A function that does not fit in float."""

    def change(call):
        call.parameters[1][:], call.parameters[2][:] = -2e38, 3e38

    return make_case("pwlu", "norm", shape=(1, 1, 40), change=change)


CASES = [
    make_case("relu", shape=(2, 2, 5000), change=negative_weight),
    make_case("relu", "tensor", shape=(2, 3, 20), channels_last=True),
    make_case("pwlu", "norm", shape=(2, 3, 30)),
]


def run_all(emulation):
    runs = [(op, case) for case in CASES for op in (FORWARD, BACKWARD)]
    wide = wide_bounds()
    *ordinary, infinite, again = emulation.run_program(
        [*runs, (BACKWARD, infinite_x()), (BACKWARD, wide)], timeout=100
    )
    for (op, case), results in zip(runs, ordinary):
        check(case, op, results)
    assert infinite[0].isfinite().all()
    for actual, exact in zip(again[:3], expected_results(wide, BACKWARD)):
        torch.testing.assert_close(actual.double(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("fault", [None, *FAULTS.values()], ids=["none", *FAULTS])
def test_fault_is_detected(tmp_path, fault):
    sources = copy_sources(tmp_path)
    if fault:
        fault.plant(sources)
    emulation = Emulation(tmp_path, "norm", *(fault.flags if fault else ADDRESSES), sources=sources)
    emulation.build_program()
    if fault is None:
        return run_all(emulation)
    with pytest.raises(AssertionError):
        run_all(emulation)
