"""What the compiler makes of the kernels, by architecture: registers, spills, instructions of the hot loops.

The budget stands in ``sass_budget.json``, which is for contiguous tensors: change it with a reason.
"""

import json
from pathlib import Path

import pytest
from cuda_sass import ARCHITECTURES, TYPES, compile_for, instructions_of_an_element

BUDGET = json.loads((Path(__file__).parent / "sass_budget.json").read_text())


@pytest.fixture(scope="module", params=ARCHITECTURES)
def machine(request, tmp_path_factory):
    sources = ["forward.cu", "backward.cu", "phase1.cu"]
    return compile_for(request.param, sources, tmp_path_factory.mktemp(request.param))


def test_registers_and_spills(machine):
    assert len(machine.registers) == 34, "as many kernels as there are"
    assert max(machine.registers) <= BUDGET["registers"]
    assert not [name for name, size in machine.spilled.items() if size > 0]


@pytest.mark.parametrize("cuda_type", TYPES)
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_instructions_of_the_hot_loop(machine, kernel, cuda_type):
    instructions = machine.kernel(f"{kernel}_kernel<{cuda_type}, pwlu::Planes>(")
    size, inputs = 4 if cuda_type == "float" else 2, 2 if kernel == "backward" else 1
    row = f"{kernel} {TYPES[cuda_type]}"
    allowed = BUDGET["instructions per element"][row]
    if machine.architecture == "sm_75":
        allowed = BUDGET["sm_75, which has no bfloat16"].get(row, allowed)
    assert instructions_of_an_element(instructions, size, inputs) <= allowed
