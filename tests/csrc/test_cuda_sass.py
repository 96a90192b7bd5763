"""What the compiler makes of the kernels, by architecture: registers, spills, instructions of the hot loops.

The budget stands in ``sass_budget.json``, which is for contiguous tensors: change it with a reason.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "pwlu_det" / "csrc" / "cuda"
BUDGET = json.loads((HERE / "sass_budget.json").read_text())
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")  # those of setup.py
TYPES = {"float": "float32", "__nv_bfloat16": "bfloat16", "__half": "float16"}


def find_cuobjdump():
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton", reason="there is no cuobjdump, nor triton, which has one")
        found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return found if Path(found).exists() else None


@pytest.fixture(scope="module", params=ARCHITECTURES)
def compiled(request, tmp_path_factory):
    """The architecture, what ptxas says, and the machine code: ``{demangled name: [(address, text)]}``."""
    if not shutil.which("nvcc"):
        pytest.skip("there is no nvcc")
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        pytest.skip("there is no cuobjdump")
    folder, said, code = tmp_path_factory.mktemp(request.param), "", {}
    for name in ("forward", "backward", "phase1"):
        cubin = folder / f"{name}.cubin"
        command = ["nvcc", "-cubin", "-O3", "-std=c++17", f"-arch={request.param}", "-Xptxas", "-v"]
        done = subprocess.run(
            [*command, SOURCES / f"{name}.cu", "-o", cubin], capture_output=True, text=True, timeout=300
        )
        if "Unsupported gpu architecture" in done.stderr:
            pytest.skip(f"this nvcc does not know {request.param}")
        assert done.returncode == 0, done.stderr[-3000:]
        said += done.stderr
        path = {"PATH": f"{Path(cuobjdump).parent}:/usr/bin:/bin"}  # it calls nvdisasm
        listing = subprocess.run(
            [cuobjdump, "-sass", cubin], capture_output=True, text=True, check=True, env=path
        ).stdout
        for function in listing.split("Function : ")[1:]:
            instructions = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", function)
            code[function.split("\n")[0].strip()] = [(int(a, 16), text) for a, text in instructions]
    names = subprocess.run(
        ["c++filt"], input="\n".join(code), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return request.param, said, dict(zip(names, code.values()))


def hot_loop(instructions):
    """The innermost loop with the most accesses of 128 bits; where several have as many, the last."""
    jumps = [(at, re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)) for at, text in instructions]
    loops = [(int(to[1], 16), at) for at, to in jumps if to and int(to[1], 16) <= at]
    best = []
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue  # it has loops in it
        loop = [text for at, text in instructions if first <= at <= last]
        if count(loop, r"\bLDG\S*\.128") >= count(best, r"\bLDG\S*\.128"):
            best = loop
    return best


def count(instructions, pattern):
    return sum(1 for text in instructions if re.search(pattern, text))


def test_registers_and_spills(compiled):
    _, said, _ = compiled
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    assert len(registers) == 34, "as many kernels as there are"
    assert max(registers) <= BUDGET["registers"]
    spills = re.findall(r"Function properties for (\S+)\n.*?(\d+) bytes spill stores", said)
    assert len(spills) >= 34
    assert not [name for name, size in spills if int(size) > 0]


@pytest.mark.parametrize("cuda_type", TYPES)
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_instructions_of_the_hot_loop(compiled, kernel, cuda_type):
    architecture, _, code = compiled
    name = f"{kernel}_kernel<{cuda_type}, pwlu::Planes>("
    (instructions,) = (code for function, code in code.items() if name in function)
    loop = hot_loop(instructions)
    loads, stores = count(loop, r"\bLDG\S*\.128"), count(loop, r"\bSTG\S*\.128")
    assert stores > 0 and loads == stores * (2 if kernel == "backward" else 1)
    assert count(loop, r"\bLDG") == loads and count(loop, r"\bSTG") == stores, "all are of 128 bits"
    assert count(loop, r"\b(LDL|STL|CALL|DADD|DFMA|ATOM|RED)") == 0
    elements = stores * (4 if cuda_type == "float" else 8)
    row = f"{kernel} {TYPES[cuda_type]}"
    allowed = BUDGET["instructions per element"][row]
    if architecture == "sm_75":
        allowed = BUDGET["sm_75, which has no bfloat16"].get(row, allowed)
    assert len(loop) / elements <= allowed
