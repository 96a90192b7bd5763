"""Mutation tests of PWLU's CUDA kernels: every planted fault must be detected."""

import pytest
import torch
from cuda_emulation import (
    ADDRESSES,
    BACKWARD,
    BACKWARD_PARAMETERS,
    BACKWARD_X,
    FORWARD,
    THREADS,
    Emulation,
    Fault,
    copy_sources,
    needs_compiler,
)
from cuda_pwlu import OPS, check, make_case

pytestmark = needs_compiler


FAULTS = {
    "tables are read before they are built": Fault(
        "pwlu_forward.cuh", "    __syncthreads();\n    input.sweep", "    input.sweep", THREADS
    ),
    "sums are taken before they are complete": Fault(
        "pwlu_backward.cuh", "finite();\n    __syncthreads();", "finite();"
    ),
    "gradients are computed before the sums are complete": Fault(
        "pwlu_backward.cuh", "if (__syncthreads_and(fits)) {", "if (fits) {"
    ),
    "scratch is reused too early": Fault(
        "device.cuh", "  __syncthreads();  // scratch can be reused\n", "", THREADS
    ),
    "the last element is skipped": Fault("items.cuh", "length - tail, body)", "length - tail - 1, body)"),
    "the last chunk is as long as the others": Fault(
        "items.cuh", "item.length = int(min(chunk_, inner_ - chunk * chunk_))", "item.length = int(chunk_)"
    ),
    "packs are misaligned": Fault("items.cuh", "int(-address(here.in[0])", "int(address(here.in[0])"),
    "inputs of different alignments are treated as equally aligned": Fault(
        "items.cuh", "aligned &= (address(streams.in[k])", "aligned |= (address(streams.in[k])"
    ),
    "a channel beyond the last one": Fault("items.cuh", "channel < channels_", "channel <= channels_"),
    "bins are off by one": Fault("pwlu_tables.cuh", "0x4b3fffffu", "0x4b400000u"),
    "bins are rounded to nearest": Fault("pwlu_tables.cuh", "__fadd_rd(u, 12582912.0f)", "(u + 12582912.0f)"),
    "too little shared memory": Fault(
        "pwlu_backward.cuh", "table + size * kColumn", "table + (size - 1) * kColumn"
    ),
    "all windows write to the first one": Fault(
        "pwlu_backward.cuh", "windows.first() + c, amount", "c, amount"
    ),
    "results that are not finite go unnoticed": Fault(
        "pwlu_forward.cuh", "    trap = fma(y, R(0), trap);\n", ""
    ),
    "sums that are not finite go unnoticed": Fault(
        "pwlu_backward.cuh", "      good &= is_finite(amount) && is_finite(moment);\n", ""
    ),
    "too little shared memory without sums": Fault(
        "pwlu_backward.cuh", "{1, 0, use_table}, use_table ? table : 0", "{1, 0, use_table}, 0"
    ),
    "a gradient that is not needed is written": Fault(
        "pwlu_backward.cuh", "(grad_x && windows.number() == 0)", "windows.number() == 0"
    ),
    "a gradient that is not needed is recomputed": Fault(
        "pwlu_backward.cuh", "write = grad_x && !", "write = !"
    ),
    "gradients that are not needed are finished": Fault(
        "pwlu_backward.cuh", "status != 0 || !kSums", "status != 0"
    ),
}


def infinite_inputs():
    case = make_case((1, 1, 70), 3)
    case.parameters[3][:] = case.parameters[4][:] = 0
    case.x[0, 0, 30:32] = torch.tensor([torch.inf, -torch.inf])
    return case


def overflowing_sums():
    case = make_case((1, 1, 64), 3)
    case.x[:], case.grad[..., ::2], case.grad[..., 1::2] = 3e38, 8.0, -8.0
    return case


def wide_bounds():
    """The difference of the bounds overflows float."""
    case = make_case((1, 1, 20), 3)
    case.parameters[1][:], case.parameters[2][:] = -2e38, 3e38
    return case


CASES = [
    make_case((2, 3, 301), 16, offsets=(1, 1, 1)),
    make_case((1, 2, 301), 16, offsets=(0, 1, 0)),
    make_case((1, 2, 77), 64),
    make_case((1, 34, 9), 2, channels_last=True),
    make_case((1, 1, 9001), 4),
]
RACING = [make_case((1, 1, 20), 2)]


def run_all(emulation):
    cases = RACING if emulation.flags == THREADS else CASES
    runs = [(op, case) for case in cases for op in OPS]
    runs += [(FORWARD, infinite_inputs()), (BACKWARD, overflowing_sums())]
    runs += [(op, wide_bounds()) for op in (BACKWARD_X, BACKWARD_PARAMETERS)]
    *ordinary, (level,), gradients, by_x, by_parameters = emulation.run_program(runs, timeout=100)
    for (op, case), results in zip(runs, ordinary):
        check(case, op, results)
    assert level.isfinite().all()
    assert all(g.isfinite().all() for g in (*gradients, *by_x, *by_parameters))


@pytest.mark.parametrize("flags", [ADDRESSES, THREADS], ids=["addresses", "threads"])
def test_original_source_passes(tmp_path, flags):
    run_all(Emulation(tmp_path, "pwlu", *flags, sources=copy_sources(tmp_path)))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault_is_detected(tmp_path, fault):
    sources = copy_sources(tmp_path)
    fault.plant(sources)
    emulation = Emulation(tmp_path, "pwlu", *fault.flags, sources=sources)
    emulation.build_program()
    with pytest.raises(AssertionError):
        run_all(emulation)
