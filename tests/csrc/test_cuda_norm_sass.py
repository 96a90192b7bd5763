"""Budget of registers, spills and instructions of a norm and an activation, from ``sass_budget.json``."""

import json
from pathlib import Path

import pytest
from cuda_sass import compile_for, instructions_of_an_element

HERE = Path(__file__).parent
BUDGET = json.loads((HERE / "sass_budget.json").read_text())
# Part of the name, and number of tensors that are read: an added tensor, or x once more, is one of them.
KERNELS = {
    "relu forward": ("norm_relu_kernel", 2),
    "relu backward": ("norm_relu_backward_kernel", 3),
    "pwlu forward": ("pwlu_kernel", 2),
    "pwlu backward": ("pwlu_backward_kernel", 3),
    "AconC forward": ("pointwise_kernel<pwlu::(anonymous namespace)::AconC", 2),
    "AconC backward": ("pointwise_backward_kernel<true, pwlu::(anonymous namespace)::AconC", 3),
    "Pau backward": ("pointwise_backward_kernel<true, pwlu::(anonymous namespace)::Pau", 3),
    "gradient": ("norm_gradient_kernel", 2),
}


@pytest.fixture(scope="module", params=["sm_75", "sm_90"])
def machine(request, tmp_path_factory):
    return compile_for(request.param, [HERE / "norm_kernels.cu"], tmp_path_factory.mktemp(request.param))


def test_registers_and_spills(machine):
    assert len(machine.registers) == len(KERNELS), "number of kernels"
    assert max(machine.registers) <= BUDGET["registers"]
    assert not [name for name, size in machine.spilled.items() if size > 0]


@pytest.mark.parametrize("kernel", KERNELS)
def test_instructions_of_the_hot_loop(machine, kernel):
    name, inputs = KERNELS[kernel]
    count = instructions_of_an_element(machine.kernel(f"pwlu::{name}"), 4, inputs)
    assert count <= BUDGET["after a norm, float32"][kernel]
