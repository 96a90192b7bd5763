"""Run the CUDA kernels on the host: their unchanged source, compiled by g++ with ``csrc/shim.h``.

A :class:`Case` has the inputs of an op. Each family of kernels has its own subclass, and a file
``csrc/emulation_{family}.cpp`` that calls the launchers. :class:`Emulation` builds this file, with or without
sanitizers, and runs cases.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "pwlu_det" / "csrc"

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
"""The dtypes, with the values of the kernels' enum ``Element``."""
FORWARD, BACKWARD, BACKWARD_X, BACKWARD_PARAMETERS = range(4)
"""The ops that all families have. The last two compute only a part of the gradients of BACKWARD."""

# With -O1, these would take a minute to compile.
UNDEFINED = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ADDRESSES = ("-O0", "-g0", "-fsanitize=address,alignment", "-fno-sanitize-recover=all")
THREADS = ("-O1", "-g", "-fsanitize=thread")


@dataclasses.dataclass
class Case:
    """Inputs of an op. ``x`` and ``grad`` are ``[batch, channels, *]``, independent of the memory layout."""

    x: torch.Tensor
    grad: torch.Tensor
    parameters: list[torch.Tensor]
    channels_last: bool = False
    offsets: tuple[int, int, int] = (0, 0, 0)
    """Offsets of x, grad and the output, in elements, from an address that is a multiple of 16."""

    def __post_init__(self):
        wide = torch.promote_types(self.x.dtype, torch.float32)
        self.parameters = [p.to(wide) for p in self.parameters]

    def memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elements in the order in which they are in memory."""
        return (tensor.movedim(1, -1) if self.channels_last else tensor).contiguous().flatten()

    def from_memory(self, elements: torch.Tensor) -> torch.Tensor:
        batch, channels, *rest = self.x.shape
        if self.channels_last:
            return elements.view(batch, *rest, channels).movedim(-1, 1)
        return elements.view(self.x.shape)

    @property
    def layout(self) -> list[int]:
        """Batch, channels, inner size, channels last, element type."""
        batch, channels = self.x.shape[:2]
        inner = self.x[0, 0].numel()
        return [batch, channels, inner, int(self.channels_last), DTYPES[self.x.dtype]]

    def numbers(self, op: int) -> list[int]:
        """The numbers that describe the case to the launchers."""
        raise NotImplementedError

    def buffers(self, op: int) -> list[tuple[torch.Tensor, int]]:
        """The launchers' inputs and outputs: flat tensors, each with its offset from a multiple of 16."""
        raise NotImplementedError

    def results(self, op: int, buffers: list[torch.Tensor]) -> list[torch.Tensor]:
        """The results of the op, taken from the buffers after a run."""
        raise NotImplementedError

    def inputs(self) -> list[tuple[torch.Tensor, int]]:
        """The parameters, x and grad, as buffers."""
        x, grad, _ = (o * self.x.element_size() for o in self.offsets)
        parameters = [(p.contiguous().flatten(), 0) for p in self.parameters]
        return [*parameters, (self.memory(self.x), x), (self.memory(self.grad), grad)]

    def output(self) -> tuple[torch.Tensor, int]:
        """A buffer of the size of x, filled with NaN."""
        empty = torch.full((self.x.numel(),), torch.nan, dtype=self.x.dtype)
        return empty, self.offsets[2] * empty.element_size()


class Emulation:
    """The kernels of a family in ``sources``, built with ``flags`` into ``folder``."""

    def __init__(self, folder: Path, family: str, *flags: str, sources: Path = SOURCES):
        self.folder, self.family, self.flags, self.sources = folder, family, flags or ("-O1",), sources
        self._library = None

    def _build(self, name: str, *flags: str) -> Path:
        target = self.folder / name
        here = ROOT / "tests" / "csrc"
        command = ["g++", "-std=c++20", "-x", "c++", "-include", here / "shim.h", "-pthread", "-Wall",
                   "-Werror", "-Wno-unknown-pragmas", f"-I{self.sources / 'cuda'}", *self.flags, *flags,
                   here / f"emulation_{self.family}.cpp", "-o", target]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return target

    def run(self, op: int, case: Case) -> list[torch.Tensor]:
        """Run a case in this process, by a shared library."""
        if self._library is None:
            self._library = ctypes.CDLL(str(self._build("emulation.so", "-fPIC", "-shared")))
        numbers, buffers, placed = case.numbers(op), case.buffers(op), []
        pointers = (ctypes.c_void_p * len(buffers))()
        for i, (tensor, offset) in enumerate(buffers):
            size = tensor.numel() * tensor.element_size()
            space = np.zeros(size + 32, np.uint8)
            start = -space.ctypes.data % 16 + offset
            space[start : start + size] = tensor.view(torch.uint8).numpy()
            placed.append((tensor, space[start : start + size]))
            pointers[i] = space.ctypes.data + start
        status = self._library.run_case((ctypes.c_int64 * len(numbers))(*numbers), pointers)
        assert status == 0, f"the launcher returned {status}"
        return case.results(op, [torch.from_numpy(space).clone().view(t.dtype) for t, space in placed])

    def build_program(self) -> Path:
        program = self.folder / "emulation"
        return program if program.exists() else self._build(program.name)

    def run_program(self, cases: list[tuple[int, Case]], timeout: float = 300) -> list[list[torch.Tensor]]:
        """Run all cases in a separate process, as sanitizers require. Their findings fail the test."""
        program = self.build_program()
        with tempfile.TemporaryDirectory() as folder:
            given, written = Path(folder, "in"), Path(folder, "out")
            content, shapes = [], []
            for op, case in cases:
                numbers, buffers = case.numbers(op), case.buffers(op)
                content.append(struct.pack(f"{len(numbers) + 2}q", len(numbers), *numbers, len(buffers)))
                for tensor, offset in buffers:
                    raw = tensor.view(torch.uint8).numpy().tobytes()
                    content += [struct.pack("2q", len(raw), offset), raw]
                shapes.append([(tensor.dtype, tensor.numel()) for tensor, _ in buffers])
            given.write_bytes(b"".join(content))
            environment = {
                **os.environ,
                "TSAN_OPTIONS": "halt_on_error=1",
                "UBSAN_OPTIONS": "halt_on_error=1",
            }
            # ThreadSanitizer needs address space randomization to be off.
            command = [*(["setarch", "-R"] if shutil.which("setarch") else []), program, given, written]
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
            assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr[:4000]}"
            raw = written.read_bytes()
        results, at = [], 0
        for (op, case), buffers in zip(cases, shapes):
            tensors = []
            for dtype, numel in buffers:
                size = numel * dtype.itemsize
                tensors.append(
                    torch.frombuffer(bytearray(raw[at : at + size] or b"\0"), dtype=torch.uint8)[:size]
                )
                tensors[-1] = tensors[-1].clone().view(dtype)
                at += size
            results.append(case.results(op, tensors))
        return results


# --- comparison ---------------------------------------------------------------------------------------


def check_parts(
    emulation: Emulation, case: Case, op: int = BACKWARD, parts: tuple = (BACKWARD_X, BACKWARD_PARAMETERS)
) -> list[torch.Tensor]:
    """Check that partial gradients are bit-identical to those of the full backward, and return the latter.

    Outputs are aligned for this, as torch's are, since the order of the sums depends on their alignment.
    """
    aligned = dataclasses.replace(case, offsets=(*case.offsets[:2], 0))
    both = emulation.run(op, aligned)
    parts = [result for part in parts for result in emulation.run(part, aligned)]
    assert len(parts) == len(both)
    for part, whole in zip(parts, both):
        bits, expected = (
            t.clone(memory_format=torch.contiguous_format).view(torch.uint8) for t in (part, whole)
        )
        assert torch.equal(bits, expected)
    return emulation.run(op, case) if case.offsets[2] else both


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def assert_near(actual: torch.Tensor, expected: np.ndarray, bound: np.ndarray | float, name: str) -> None:
    """Assert that each element is within its own bound."""
    difference = np.abs(as_numpy(actual) - expected)
    worst = np.argmax(np.nan_to_num(difference - bound, nan=np.inf)) if difference.size else 0
    assert np.all(difference <= bound), (
        f"{name}: {as_numpy(actual).flat[worst]:.9g} instead of {expected.flat[worst]:.9g} at index {worst}"
    )


# --- planted faults -----------------------------------------------------------------------------------


class Fault(NamedTuple):
    """A fault in a file of ``csrc/cuda`` that must be detected by the tests, built with these flags."""

    file: str
    right: str
    wrong: str
    flags: tuple = ADDRESSES

    def plant(self, sources: Path) -> None:
        file = sources / "cuda" / self.file
        text = file.read_text()
        assert text.count(self.right) == 1, f"{self.right!r} must occur exactly once in {self.file}"
        file.write_text(text.replace(self.right, self.wrong))


def copy_sources(folder: Path, *elements: str) -> Path:
    """Copy the sources, with kernels only for float32 and the given types."""
    sources = shutil.copytree(SOURCES, folder / "csrc", ignore=shutil.ignore_patterns("cpu"))
    keep_types(sources, *elements)
    return sources


def keep_types(sources: Path, *elements: str) -> None:
    """Remove the kernels of all types but float32 and the given ones, so that the rest compiles faster."""
    dispatch = sources / "cuda" / "dispatch.cuh"
    cases = re.compile(r" +case Element::k\w+:\n +return f\(Tag<(\w+)>\{\}\);\n")
    text, count = cases.subn(lambda match: match[0] if match[1] in elements else "", dispatch.read_text())
    assert count == 3
    dispatch.write_text(text)


needs_compiler = pytest.mark.skipif(
    not shutil.which("g++"), reason="g++, which builds the kernels, is not installed"
)
