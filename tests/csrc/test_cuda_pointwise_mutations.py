"""Mutation tests of the pointwise activations' CUDA kernels: every planted fault must be detected."""

import pytest
import torch
from cuda_emulation import (
    ADDRESSES,
    BACKWARD,
    BACKWARD_X,
    FORWARD,
    THREADS,
    Emulation,
    Fault,
    copy_sources,
    needs_compiler,
)
from cuda_pointwise import OPS, check, keep_activations, make_case

pytestmark = needs_compiler

FAULTS = {
    "a coefficient of another channel is read": Fault(
        "pointwise.cuh", "return data[k][channel * stride[k]]", "return data[k][stride[k]]"
    ),
    "sums are taken before they are complete": Fault(
        "pointwise.cuh", "sums[first + k];\n    __syncthreads();", "sums[first + k];"
    ),
    "scratch is reused too early": Fault(
        "pointwise.cuh", "    __syncthreads();  // scratch can be reused\n", "", THREADS
    ),
    "too little shared memory": Fault("pointwise.cuh", "(size < kSumsAtOnce ? size", "(size < 9 ? size - 1"),
    "the sums of one thread are skipped": Fault(
        "pointwise.cuh", "t < kThreads; t += kWarp", "t < kThreads - 1; t += kWarp"
    ),
    "results that are not finite go unnoticed": Fault(
        "pointwise.cuh", "    trap = fma(y, Number(0), trap);\n", ""
    ),
    "sums that are not finite go unnoticed": Fault(
        "pointwise.cuh", "for (int k = 0; k < kCount; ++k) trap = fma(sums[k], Number(0), trap);", ""
    ),
    "slopes that are not finite go unnoticed": Fault(
        "pointwise.cuh", "    trap = fma(by_x, Number(0), trap);\n", ""
    ),
    "a gradient that is not needed is written": Fault("pointwise.cuh", "!kSums || grad_x", "true"),
    "a gradient that is not needed is recomputed": Fault("pointwise.cuh", "write = grad_x && ", "write = "),
    "gradients that are not needed are finished": Fault(
        "pointwise.cuh", "status != 0 || !kSums", "status != 0"
    ),
    "finite results are recomputed, and others are not": Fault(
        "pointwise.cuh", "if (kFast<F, T> && is_finite", "if (kFast<F, T> && !is_finite"
    ),
    "ln 2 in a single part": Fault("pointwise_number.cuh", "std::fma(b, 1.90465421e-9f, ", "("),
    "the reciprocal of a large Q is 0": Fault(
        "pointwise_number.cuh", "0.25f * normal_reciprocal(0.25f * b.value)", "normal_reciprocal(b.value)"
    ),
}


def far_out():
    """PAU where the reciprocal of Q is subnormal, and at 1e12, where powers of x overflow."""
    case = make_case("pau", (1, 1, 40))
    case.parameters[0] = torch.tensor([0.5, 1, 0, 0, 0.25, 0, 0, 0, 0, 0.5])[:, None]
    case.x[0, 0, :3] = torch.tensor([4e9, -4e9, 1e12])
    return case


def overflowing_sums():
    """Sums of terms that overflow float, although the total is 0."""
    case = make_case("prelu", (1, 1, 128))
    case.x[:], case.grad[:] = -3e38, 8.0
    case.grad[0, 0, 64:] = -8.0
    return case


CASES = [
    make_case("pau", (2, 3, 301), offsets=(1, 1, 1), transposed=True),
    make_case("pau", (1, 34, 9), channels_last=True),
    make_case("apl of 2", (1, 2, 40)),
]
RACING = [make_case("slaf of 20", (1, 1, 20))]


def run_all(emulation):
    cases = RACING if emulation.flags == THREADS else CASES
    runs = [(op, case) for case in cases for op in OPS]
    swish = make_case("swish", (1, 1, 2000))
    swish.x[0, 0], swish.parameters[0] = torch.linspace(-86, 86, 2000), torch.ones(1, 1)
    runs += [(FORWARD, swish), (FORWARD, far_out()), (BACKWARD_X, far_out()), (BACKWARD, overflowing_sums())]
    *ordinary, (sigmoid,), (far,), (far_slope,), gradients = emulation.run_program(runs, timeout=100)
    for (op, case), results in zip(runs, ordinary):
        check(case, op, results)
    x = swish.x.double()
    torch.testing.assert_close(sigmoid.double(), x * x.sigmoid(), rtol=3e-7, atol=0)
    torch.testing.assert_close(far[0, 0, :3], torch.tensor([0.5, 0.5, 0.5]))
    assert far_slope.isfinite().all()
    assert gradients[1] == 0


def build(folder, flags, fault=None):
    sources = copy_sources(folder)
    keep_activations(sources, "Prelu", "Swish", "Apl", "Pau")
    if fault:
        fault.plant(sources)
    return Emulation(folder, "pointwise", *flags, sources=sources)


def test_original_source_passes(tmp_path):
    """With AddressSanitizer; test_cuda_pointwise.py runs it with ThreadSanitizer."""
    run_all(build(tmp_path, ADDRESSES))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault_is_detected(tmp_path, fault):
    emulation = build(tmp_path, fault.flags, fault)
    emulation.build_program()
    with pytest.raises(AssertionError):
        run_all(emulation)
