"""Cases of the pointwise activations for :mod:`cuda_emulation`, and their expected results."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import oracle_activations as oracle
import torch
from cuda_emulation import (
    BACKWARD,
    BACKWARD_PARAMETERS,
    BACKWARD_X,
    FORWARD,
    SOURCES,
    Case,
    as_numpy,
    assert_near,
)

from pwlu_det.ops.pointwise import TABLE

OPS = FORWARD, BACKWARD, BACKWARD_X, BACKWARD_PARAMETERS
ROWS = re.compile(r"^  _\((\w+), (\w+)(?:<>)?,", re.MULTILINE)
"""A row of the list of activations in the kernels: op and formula."""
ACTIVATIONS = [op for op, _ in ROWS.findall((SOURCES / "pointwise_list.h").read_text())]
SIZES = {"apl": 3, "slaf": 4}
"""The values of S that the kernels are specialized for; others are computed in double."""
KINDS = {
    **{name: (name, SIZES.get(name)) for name in TABLE},
    "apl of 2": ("apl", 2),
    "slaf of 20": ("slaf", 20),
}


@dataclasses.dataclass
class PointwiseCase(Case):
    """The parameters are one table, ``[coefficients, channels]``."""

    name: str = ""
    transposed: bool = False
    """Whether the table is stored as ``[channels, coefficients]``."""

    @property
    def table(self) -> torch.Tensor:
        return self.parameters[0]

    def numbers(self, op: int) -> list[int]:
        size, channels = self.table.shape
        strides = (1, size) if self.transposed else (channels, 1)
        return [*self.layout, ACTIVATIONS.index(self.name), size, *strides, op]

    def buffers(self, op: int) -> list[tuple[torch.Tensor, int]]:
        (_, x, grad) = self.inputs()
        table = (self.table.t() if self.transposed else self.table).contiguous().flatten()
        like_x = [] if op == BACKWARD_PARAMETERS else [self.output()]
        gradients = [] if op in (FORWARD, BACKWARD_X) else [(torch.full_like(table, torch.nan), 0)]
        return [(table, 0), x, grad, *like_x, *gradients]

    def results(self, op: int, buffers: list[torch.Tensor]) -> list[torch.Tensor]:
        """``[y]``, or the gradients of x and of the table."""
        outputs = buffers[3:]
        like_x = [] if op == BACKWARD_PARAMETERS else [self.from_memory(outputs.pop(0))]
        size, channels = self.table.shape
        tables = [o.view(channels, size).t() if self.transposed else o.view(size, channels) for o in outputs]
        return [*like_x, *tables]


def arguments(name: str, table: np.ndarray) -> list[np.ndarray]:
    """The rows of the table as the parameters of the op."""
    parameters, row = [], 0
    dims = [d.split() for d in TABLE[name].values()]
    fixed = sum(int(d[1]) if d[-1].isdigit() else 1 for d in dims if "S" not in d)
    free = [d for d in dims if "S" in d]
    for d in dims:
        size = (len(table) - fixed) // len(free) if "S" in d else int(d[1]) if d[-1].isdigit() else 1
        rows = table[row : row + size]
        parameters.append(rows[0] if len(d) == 1 else rows if d[0] == "S" else rows.T)
        row += size
    return parameters


def make_case(
    kind, shape, dtype=torch.float32, channels_last=False, offsets=(0, 0, 0), transposed=False, seed=0
):
    """Parameters of moderate size, and x that is not near a hinge."""
    name, free = KINDS[kind]
    random = torch.Generator().manual_seed(seed)
    rows = []
    for label, dims in TABLE[name].items():
        size = [free if d == "S" else int(d) if d.isdigit() else 1 for d in dims.split()]
        shift = {"left": -1.0, "right": 1.0}.get(label, 0.2)
        rows.append(torch.rand(max(size), shape[1], generator=random) - 0.5 + shift)
    table = torch.cat(rows)
    if kind == "slaf of 20":
        table *= 4.0 ** -torch.arange(20)[:, None]
    x = (torch.randn(shape, generator=random) * 1.5).clamp(-4, 4).to(dtype)
    hinges = {"apl": table[len(table) // 2 :], "srelu": table[::2]}.get(name, table[:0])
    for hinge in (*hinges, torch.zeros(shape[1])):
        near = (x - hinge.view(-1, *[1] * (x.dim() - 2))).abs() < 1e-3
        x[near] = 3.0
    grad = torch.randn(shape, generator=random).to(dtype)
    return PointwiseCase(x, grad, [table], channels_last, offsets, name, transposed)


def check(case: PointwiseCase, op: int, results: list[torch.Tensor]) -> None:
    """Compare every element of the results with the papers' equations."""
    x, table = oracle.wide(as_numpy(case.x)), oracle.wide(as_numpy(case.table))
    unit = 4 * torch.finfo(case.table.dtype).eps  # of the computation dtype
    info = torch.finfo(case.x.dtype)

    def function(x, table):
        return getattr(oracle, case.name)(x, *arguments(case.name, table))

    def rounded(expected):
        """The error bound: one rounding in the dtype of x, several of the largest value in the table's."""
        return info.eps * (np.abs(expected) + info.smallest_normal) + 4 * unit * np.abs(expected).max(
            initial=1
        )

    if op == FORWARD:
        expected = function(x, table)
        assert_near(results[0], expected, rounded(expected), "y")
        return
    grad, step = oracle.wide(as_numpy(case.grad)), oracle.STEP
    if op != BACKWARD_PARAMETERS:
        by_x = grad * (function(x + step, table) - function(x - step, table)) / (2 * step)
        assert_near(results[0], by_x, rounded(by_x) + 1e-10, "grad of x")
    if op == BACKWARD_X:
        return
    others = tuple(axis for axis in range(x.ndim) if axis != 1)
    for k in range(len(table)):
        moved = step * (np.arange(len(table)) == k)[:, None]
        terms = grad * (function(x, table + moved) - function(x, table - moved)) / (2 * step)
        expected = terms.sum(others)
        # At -10, a sigmoid has ten times the relative error of its argument, and a sum of few terms keeps it.
        bound = (4 * unit + 1e-10) * np.abs(terms).sum(others) + 1e-10
        assert_near(results[-1][k], expected, bound, f"gradient of coefficient {k}")


def keep_activations(sources: Path, *formulas: str) -> None:
    """In a copy of the sources, replace all other formulas by SLAF's, so that it compiles faster."""
    file = sources / "pointwise_list.h"
    text, count = ROWS.subn(
        lambda row: row[0] if row[2] in (*formulas, "Slaf") else f"  _({row[1]}, Slaf<>,", file.read_text()
    )
    assert count == len(TABLE)
    file.write_text(text)
