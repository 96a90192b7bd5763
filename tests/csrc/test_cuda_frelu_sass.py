"""Budget of registers, spills and instructions of Funnel ReLU's kernels, from ``sass_budget.json``."""

import json
from pathlib import Path

import pytest
from cuda_sass import ARCHITECTURES, compile_for, count, hot_loop

BUDGET = json.loads((Path(__file__).parent / "sass_budget.json").read_text())
ALLOWED = BUDGET["frelu, contiguous and channels last"]
# Name, last template argument, and number of loads per element, some of which two adjacent columns share.
KERNELS = {
    "inference": ("inference", "", 2),
    "convolve": ("convolve", "", 2),
    "backward, fixed norm": ("backward", ", pwlu::FixedNorm<float> ", 6),
    "backward": ("backward", ", pwlu::BatchNorm<float> ", 6),
    "normalise": ("normalise", "", 2),
    "norm sums": ("norm_sums", "", 3),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def machine(request, tmp_path_factory):
    return compile_for(request.param, ["frelu.cu"], tmp_path_factory.mktemp(request.param))


def test_registers_and_spills(machine):
    assert len(machine.registers) == 56, "number of kernels"
    assert max(machine.registers) <= BUDGET["frelu, registers in double"]
    floats = [n for n in machine.registers if n > BUDGET["registers"]]
    assert len(floats) <= 4, "only backward in double may exceed the general budget"
    assert not [name for name, size in machine.spilled.items() if size > 0]


@pytest.mark.parametrize("cuda_type, dtype", [("float", "float32"), ("__nv_bfloat16", "bfloat16")])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_instructions_of_the_hot_loop(machine, kernel, channels_last, cuda_type, dtype):
    name, norm, inputs = KERNELS[kernel]
    strips = name not in ("normalise", "norm_sums")
    distribution = ("1", "32") if strips else ("pwlu::Planes", "pwlu::Rows")
    arguments = f"{cuda_type}, {distribution[channels_last]}{norm}"
    whole = not strips and not channels_last  # all accesses have 128 bits
    loads = r"\bLDG\S*\.128" if whole else r"\bLDG"
    loop = hot_loop(machine.kernel(f"frelu_{name}_kernel<{arguments}>("), loads)
    assert count(loop, r"\b(LDL|STL|DADD|DMUL|DFMA|ATOM|RED)") == 0
    assert count(loop, r"\b(LDG|STG)\S*\.128") == (count(loop, r"\b(LDG|STG)") if whole else 0)
    elements = count(loop, r"\bLDG") // inputs * ((16 // (4 if dtype == "float32" else 2)) if whole else 1)
    if name != "norm_sums":
        assert count(loop, r"\bSTG") == count(loop, r"\bLDG") // inputs
    row = f"{kernel} {dtype}"
    allowed = (
        BUDGET["frelu on sm_75"].get(row, ALLOWED[row]) if machine.architecture == "sm_75" else ALLOWED[row]
    )
    assert len(loop) / elements <= allowed[channels_last]
