"""Budget of registers, spills and instructions in the hot loops of PWLU and of some pointwise activations.

Checked for each architecture, for contiguous tensors. The budget is in ``sass_budget.json``; change it only
with a reason.
"""

import json
from pathlib import Path

import pytest
from cuda_sass import ARCHITECTURES, TYPES, compile_for, instructions_of_an_element

HERE = Path(__file__).parent
BUDGET = json.loads((HERE / "sass_budget.json").read_text())
POINTWISE = ("Prelu", "AconC", "Pau")
every_type = pytest.mark.parametrize("cuda_type", TYPES)
KERNELS = {
    "forward": ("kernel", ""),
    "backward": ("backward_kernel", "true, "),
    "backward of x": ("backward_kernel", "false, "),
}
"""Part of the name, and the first template argument: whether the parameters' gradients are computed."""
every_kernel = pytest.mark.parametrize("kernel", KERNELS)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pwlu(request, tmp_path_factory):
    sources = ["pwlu_forward.cu", "pwlu_backward.cu", "pwlu_phase1.cu"]
    return compile_for(request.param, sources, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pointwise(request, tmp_path_factory):
    return compile_for(request.param, [HERE / "pointwise_kernels.cu"], tmp_path_factory.mktemp(request.param))


def check_registers_and_spills(machine, kernels):
    assert len(machine.registers) == kernels, "number of kernels"
    assert max(machine.registers) <= BUDGET["registers"]
    assert not [name for name, size in machine.spilled.items() if size > 0]


def check_hot_loop(machine, name, row, kernel, cuda_type):
    """Check that the kernel of this name is within the budget of this row."""
    size, inputs = 4 if cuda_type == "float" else 2, 1 if kernel == "forward" else 2
    allowed = BUDGET["instructions per element"][row]
    if machine.architecture == "sm_75":
        allowed = BUDGET["sm_75, which has no bfloat16"].get(row, allowed)
    assert instructions_of_an_element(machine.kernel(name), size, inputs) <= allowed


def test_registers_and_spills(pwlu):
    check_registers_and_spills(pwlu, 42)


def test_registers_and_spills_of_pointwise_activations(pointwise):
    check_registers_and_spills(pointwise, len(KERNELS) * (3 * len(POINTWISE) + 3))


@every_type
@every_kernel
def test_instructions_of_the_hot_loop(pwlu, kernel, cuda_type):
    name, argument = KERNELS[kernel]
    name = f"pwlu_{name}<{argument}pwlu::TensorInput<{cuda_type}>, pwlu::Planes, {cuda_type}>("
    check_hot_loop(pwlu, name, f"{kernel} {TYPES[cuda_type]}", kernel, cuda_type)


@every_type
@every_kernel
@pytest.mark.parametrize("activation", POINTWISE)
def test_instructions_of_pointwise_activations(pointwise, activation, kernel, cuda_type):
    name, argument = KERNELS[kernel]
    arguments = f"pwlu::TensorInput<{cuda_type}>, pwlu::Planes, {cuda_type}"
    name = f"pointwise_{name}<{argument}pwlu::(anonymous namespace)::{activation}, {arguments}>("
    check_hot_loop(pointwise, name, f"{activation} {kernel} {TYPES[cuda_type]}", kernel, cuda_type)
