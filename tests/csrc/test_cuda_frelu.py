"""Funnel ReLU's CUDA kernels on the host: against the equations, and under sanitizers."""

import numpy as np
import oracle_activations as oracle
import pytest
import torch
from cuda_emulation import DTYPES, THREADS, UNDEFINED, Emulation, needs_compiler
from cuda_frelu import (
    BACKWARD,
    CONVOLVE,
    INFERENCE,
    INFERENCE_BACKWARD,
    NORM_SUMS,
    NORMALISE,
    OPS,
    check,
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
    "images of a pixel": ((37, 5, 1, 1),),
    "a row": ((2, 2, 1, 9),),
    "a column": ((2, 2, 9, 1),),
    "odd": ((2, 3, 7, 5), False, (1, 1, 1)),
    "a wide row of several items": ((1, 2, 1, 9001),),
    "a tall column": ((1, 1, 70, 1),),
    "several items": ((1, 2, 200, 91), False, (0, 1, 2)),
    "several images an item": ((40, 1, 2, 3),),
    "last: one channel": ((2, 1, 6, 4), True),
    "last: more channels than a warp": ((2, 34, 11, 13), True),
    "last: a row": ((1, 5, 1, 150), True, (1, 0, 0)),
    "last: a tall image": ((1, 3, 67, 2), True),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_op_computes_its_equation(plain, case, dtype, op):
    shape, *rest = case
    case = make_case(shape, dtype, *rest)
    check(case, op, plain.run(op, case))
