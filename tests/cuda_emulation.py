"""Runs the CUDA kernels on the host: their own source, compiled by g++ with ``csrc/shim.h``.

One :class:`Case` is a tensor and the functions that are applied to it; :class:`Emulation` builds the
source, with sanitizers or without, and runs cases.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import oracle
import torch

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "pwlu_det" / "csrc"

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
FORWARD, BACKWARD, PHASE1 = range(3)
NAMES = ("points", "left_bound", "right_bound", "left_slope", "right_slope")


@dataclasses.dataclass
class Case:
    """``x`` and ``grad`` are ``[batch, channels, inner]``, whatever their place in memory will be."""

    x: torch.Tensor
    grad: torch.Tensor
    parameters: list[torch.Tensor]
    channels_last: bool = False
    offsets: tuple[int, int, int] = (0, 0, 0)
    """How many elements x, grad and the output lie from an address that is a multiple of 16."""

    def __post_init__(self):
        wide = torch.promote_types(self.x.dtype, torch.float32)
        self.parameters = [p.to(wide) for p in self.parameters]

    @property
    def num_intervals(self) -> int:
        return self.parameters[0].shape[1] - 1

    def memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elements in the order that they have in memory."""
        return (tensor.transpose(1, 2) if self.channels_last else tensor).contiguous().flatten()

    def from_memory(self, elements: torch.Tensor) -> torch.Tensor:
        batch, channels, inner = self.x.shape
        if self.channels_last:
            return elements.view(batch, inner, channels).transpose(1, 2)
        return elements.view(batch, channels, inner)

    def header(self, op: int) -> bytes:
        batch, channels, inner = self.x.shape
        return struct.pack("7q", batch, channels, inner, self.channels_last, DTYPES[self.x.dtype],
                           self.num_intervals, op)  # fmt: skip

    def buffers(self, op: int) -> list[tuple[torch.Tensor, int]]:
        """What the op is called with: 13 flat tensors, and how many bytes from a multiple of 16 each lies."""
        wide, size = self.parameters[0].dtype, self.x.element_size()
        outputs = [torch.full((self.x.numel(),), torch.nan, dtype=self.x.dtype)]
        channels = self.x.shape[1]
        sizes = {FORWARD: [], BACKWARD: [p.numel() for p in self.parameters], PHASE1: [channels, channels]}
        outputs += [torch.full((n,), torch.nan, dtype=wide) for n in sizes[op]]
        outputs += [torch.empty(0)] * (6 - len(outputs))
        x, grad, out = (o * size for o in self.offsets)
        inputs = [(p.contiguous().flatten(), 0) for p in self.parameters]
        inputs += [(self.memory(self.x), x), (self.memory(self.grad), grad)]
        return inputs + [(outputs[0], out)] + [(o, 0) for o in outputs[1:]]

    def results(self, op: int, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """``[y]``, the six gradients, or ``[y, mean, deviation]``, from the six outputs of a run."""
        first = self.from_memory(outputs[0])
        if op == FORWARD:
            return [first]
        if op == PHASE1:
            return [first, *outputs[1:3]]
        return [first, *(o.view(p.shape) for o, p in zip(outputs[1:], self.parameters))]


class Emulation:
    """The kernels under ``sources``, built with these flags into ``folder``."""

    def __init__(self, folder: Path, *flags: str, sources: Path = SOURCES):
        self.folder, self.flags, self.sources = folder, flags or ("-O1",), sources
        self._library = None

    def _build(self, name: str, *flags: str) -> Path:
        target = self.folder / name
        here = ROOT / "tests" / "csrc"
        command = ["g++", "-std=c++20", "-x", "c++", "-include", here / "shim.h", "-pthread", "-Wall",
                   "-Werror", "-Wno-unknown-pragmas", f"-I{self.sources / 'cuda'}", *self.flags, *flags,
                   here / "emulation.cpp", "-o", target]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return target

    def run(self, op: int, case: Case) -> list[torch.Tensor]:
        """By a call of a shared library."""
        if self._library is None:
            self._library = ctypes.CDLL(str(self._build("emulation.so", "-fPIC", "-shared")))
        pointers, placed = (ctypes.c_void_p * 13)(), []
        for i, (tensor, offset) in enumerate(case.buffers(op)):
            size = tensor.numel() * tensor.element_size()
            space = np.zeros(size + 32, np.uint8)
            start = -space.ctypes.data % 16 + offset
            space[start : start + size] = tensor.view(torch.uint8).numpy()
            placed.append((tensor, space[start : start + size]))
            pointers[i] = space.ctypes.data + start
        status = self._library.run_case(case.header(op), pointers)
        assert status == 0, f"the launcher returned {status}"
        outputs = [torch.from_numpy(space).clone().view(tensor.dtype) for tensor, space in placed[7:]]
        return case.results(op, outputs)

    def build_program(self) -> Path:
        program = self.folder / "emulation"
        return program if program.exists() else self._build(program.name)

    def run_program(self, cases: list[tuple[int, Case]], timeout: float = 300) -> list[list[torch.Tensor]]:
        """All in a process of their own, as the sanitizers need; what they find fails the test."""
        program = self.build_program()
        with tempfile.TemporaryDirectory() as folder:
            given, written = Path(folder, "in"), Path(folder, "out")
            content, shapes = [], []
            for op, case in cases:
                content.append(case.header(op))
                for tensor, offset in case.buffers(op):
                    raw = tensor.view(torch.uint8).numpy().tobytes()
                    content += [struct.pack("2q", len(raw), offset), raw]
                shapes.append([(tensor.dtype, tensor.numel()) for tensor, _ in case.buffers(op)])
            given.write_bytes(b"".join(content))
            environment = {
                **os.environ,
                "TSAN_OPTIONS": "halt_on_error=1",
                "UBSAN_OPTIONS": "halt_on_error=1",
            }
            # ThreadSanitizer needs its addresses where they are expected.
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
            results.append(case.results(op, tensors[7:]))
        return results


# --- cases and what is expected of them ---------------------------------------------------------------


def make_case(shape, n, dtype=torch.float32, channels_last=False, offsets=(0, 0, 0), seed=0) -> Case:
    """Bounds whose knots float32 holds, and x for which x - B_L is exact: bins are beyond doubt."""
    channels = shape[1]
    random = torch.Generator().manual_seed(seed)
    interval = 4 / 2 ** (n.bit_length() - 1)
    left = torch.randint(-8, 5, (channels,), generator=random) / 2.0
    points, slopes = (
        torch.randn(channels, n + 1, generator=random),
        torch.randn(2, channels, generator=random),
    )
    u = torch.rand(shape, generator=random) * 1.5 - 0.25
    x = left[:, None] + (u * n * interval * 256).round() / 256
    grad = torch.randn(shape, generator=random)
    parameters = [points, left, left + n * interval, *slopes]
    return Case(x.to(dtype), grad.to(dtype), parameters, channels_last, offsets)


def check(case: Case, op: int, results: list[torch.Tensor], gradient_unit: float = 1e-6) -> None:
    """Hold results against the paper's equations in float64; every element counts."""
    {FORWARD: check_forward, BACKWARD: check_backward, PHASE1: check_phase1}[op](case, results, gradient_unit)


def _numpy(tensor):
    return tensor.detach().double().numpy()


def _near(actual, expected, bound, name):
    difference = np.abs(_numpy(actual) - expected)
    worst = np.nanargmax(difference - bound) if difference.size else 0
    assert np.all(difference <= bound), (
        f"{name}: {_numpy(actual).flat[worst]:.9g} in place of {expected.flat[worst]:.9g} at {worst}"
    )


def check_forward(case, results, _unit=None):
    arrays = [_numpy(p) for p in case.parameters]
    rows = oracle.per_function(_numpy(case.x), case.x.shape[1])
    expected = oracle.from_function(oracle.forward(rows, *arrays), case.x.shape)
    unit = torch.finfo(case.parameters[0].dtype).eps
    info = torch.finfo(case.x.dtype)
    rounded = info.eps * (np.abs(expected) + info.smallest_normal)
    _near(results[0], expected, rounded + 2 * unit * (np.abs(arrays[0]).max() + np.abs(expected)), "y")


def check_backward(case, results, unit):
    arrays = _, left, right, *_ = [_numpy(p) for p in case.parameters]
    rows = oracle.per_function(_numpy(case.x), len(left))
    g = oracle.per_function(_numpy(case.grad), len(left))
    table = oracle.table_1(rows, *arrays)
    steepest = np.abs(table.x).max(initial=0, axis=1)
    expected = oracle.from_function(table.x * g, case.x.shape)
    info = torch.finfo(case.x.dtype)
    own = info.eps + 2 * torch.finfo(case.parameters[0].dtype).eps
    _near(results[0], expected, own * (np.abs(expected) + info.smallest_normal), "grad of x")
    # Sums in double need no such room, but the parameters' gradients are rounded to float at the end.
    distance = np.maximum(1, np.maximum(np.abs(rows - left[:, None]), np.abs(rows - right[:, None])))
    scale = unit * (np.abs(g) * distance).sum(1)
    for name, actual, row in zip(NAMES, results[1:], table[1:]):
        terms = row * (g[:, None] if name == "points" else g)
        bound = scale[:, None] if name == "points" else scale
        _near(actual, terms.sum(-1), bound * (np.maximum(1, steepest) if "bound" in name else 1), name)


def check_phase1(case, results, _unit=None):
    relu, mean, deviation = results
    assert torch.equal(relu, case.x.relu())
    rows = oracle.per_function(_numpy(case.x), case.x.shape[1])
    unit = torch.finfo(mean.dtype).eps
    expected = rows.mean(1)
    std = rows.std(1)
    _near(mean, expected, unit * (np.abs(expected) + std), "mean")
    squares = ((rows - expected[:, None]) ** 2).sum(1)
    _near(deviation, squares, 20 * unit * squares + unit**2, "deviation")
