"""Compile the CUDA kernels, and inspect their registers, spills and machine code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "pwlu_det" / "csrc" / "cuda"
# Two of those in setup.py: the oldest, which has no bfloat16, and a recent one.
ARCHITECTURES = ("sm_75", "sm_90")
TYPES = {"float": "float32", "__nv_bfloat16": "bfloat16", "__half": "float16"}


class Machine(NamedTuple):
    """The result of a compilation."""

    architecture: str
    registers: list[int]
    """Registers of each kernel and function."""
    spilled: dict[str, int]
    """Bytes of spilled registers that each one stores."""
    code: dict[str, list[tuple[int, str]]]
    """Addresses and texts of the instructions, by demangled name."""

    def kernel(self, name: str) -> list[tuple[int, str]]:
        """The instructions of the only function whose name contains ``name``."""
        (instructions,) = (code for function, code in self.code.items() if name in function)
        return instructions


def compile_for(architecture: str, sources: list[str], folder: Path, *flags: str) -> Machine:
    """Compile sources of ``csrc/cuda`` (or full paths). Skips the test if that is impossible."""
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not installed")
    cuobjdump = _find_cuobjdump()
    if cuobjdump is None:
        pytest.skip("cuobjdump is not installed")
    messages, code = "", {}
    for source in sources:
        cubin = folder / f"{Path(source).stem}.cubin"
        command = ["nvcc", "-cubin", "-O3", "-std=c++17", f"-arch={architecture}", "-Xptxas", "-v", *flags]
        done = subprocess.run(
            [*command, f"-I{SOURCES}", SOURCES / source, "-o", cubin],
            capture_output=True,
            text=True,
            timeout=300,
        )
        if "Unsupported gpu architecture" in done.stderr:
            pytest.skip(f"this nvcc does not support {architecture}")
        assert done.returncode == 0, done.stderr[-3000:]
        messages += done.stderr
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
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", messages)]
    spills = re.findall(r"Function properties for (\S+)\n.*?(\d+) bytes spill stores", messages)
    assert len(spills) >= len(registers) > 0
    return Machine(
        architecture, registers, {name: int(n) for name, n in spills}, dict(zip(names, code.values()))
    )


def _find_cuobjdump():
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip(
            "triton", reason="neither cuobjdump nor triton, which contains it, is installed"
        )
        found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return found if Path(found).exists() else None


def hot_loop(instructions, loads=r"\bLDG\S*\.128"):
    """The innermost loop with the most loads; on ties, the last one."""
    jumps = [(at, re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)) for at, text in instructions]
    loops = [(int(to[1], 16), at) for at, to in jumps if to and int(to[1], 16) <= at]
    best = []
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue  # it contains other loops
        # Some loops are left by a CALL to the instruction after them, which is a jump.
        leave = rf"CALL\S* (0x{last + 16:x})$"
        loop = [re.sub(leave, r"BRA \1", text) for at, text in instructions if first <= at <= last]
        if count(loop, loads) >= count(best, loads):
            best = loop
    return best


def count(instructions, pattern):
    return sum(1 for text in instructions if re.search(pattern, text))


def instructions_of_an_element(instructions, size: int, inputs: int) -> float:
    """Instructions per element in the hot loop, which reads ``inputs`` tensors and writes one.

    ``size`` is that of an element in bytes. All accesses must have 128 bits, and there must be no local
    memory, double precision, or atomics.
    """
    loop = hot_loop(instructions)
    loads, stores = count(loop, r"\bLDG\S*\.128"), count(loop, r"\bSTG\S*\.128")
    assert stores > 0 and loads == stores * inputs
    assert count(loop, r"\bLDG") == loads and count(loop, r"\bSTG") == stores, (
        "not all accesses have 128 bits"
    )
    assert count(loop, r"\b(LDL|STL|CALL|DADD|DMUL|DFMA|ATOM|RED)") == 0
    return len(loop) / (stores * (16 // size))
