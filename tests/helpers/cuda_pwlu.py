"""Cases of PWLU for :mod:`cuda_emulation`, and their expected results."""

from __future__ import annotations

import numpy as np
import oracle
import torch
from cuda_emulation import (
    BACKWARD,
    BACKWARD_PARAMETERS,
    BACKWARD_X,
    FORWARD,
    Case,
    as_numpy,
    assert_near,
)

PHASE1 = 4
OPS = FORWARD, BACKWARD, BACKWARD_X, BACKWARD_PARAMETERS, PHASE1
NAMES = ("points", "left_bound", "right_bound", "left_slope", "right_slope")


class PwluCase(Case):
    """The parameters are those in ``NAMES``; x is ``[batch, channels, inner]``."""

    def numbers(self, op: int) -> list[int]:
        return [*self.layout, self.parameters[0].shape[1] - 1, op]

    def buffers(self, op: int) -> list[tuple[torch.Tensor, int]]:
        like_x = [] if op == BACKWARD_PARAMETERS else [self.output()]
        others = {FORWARD: [], BACKWARD_X: [], PHASE1: self.parameters[1:3]}.get(op, self.parameters)
        return [*self.inputs(), *like_x, *((torch.full_like(p, torch.nan).flatten(), 0) for p in others)]

    def results(self, op: int, buffers: list[torch.Tensor]) -> list[torch.Tensor]:
        """``[y]``, the gradients, or ``[y, mean, deviation]``."""
        outputs = buffers[7:]
        like_x = [] if op == BACKWARD_PARAMETERS else [self.from_memory(outputs.pop(0))]
        if op != PHASE1:
            outputs = [o.view(p.shape) for o, p in zip(outputs, self.parameters)]
        return [*like_x, *outputs]


def make_case(shape, n, dtype=torch.float32, channels_last=False, offsets=(0, 0, 0), seed=0) -> PwluCase:
    """Knots and x - B_L are exact in float32, so that the bin of each x is unambiguous."""
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
    return PwluCase(x.to(dtype), grad.to(dtype), parameters, channels_last, offsets)


def check(case: PwluCase, op: int, results: list[torch.Tensor], gradient_unit: float = 1e-6) -> None:
    """Compare every element of the results with the paper's equations in float64."""
    if op in (FORWARD, PHASE1):
        (check_forward if op == FORWARD else check_phase1)(case, results)
    else:
        check_backward(case, op, results, gradient_unit)


def check_forward(case, results):
    arrays = [as_numpy(p) for p in case.parameters]
    rows = oracle.per_function(as_numpy(case.x), case.x.shape[1])
    expected = oracle.from_function(oracle.forward(rows, *arrays), case.x.shape)
    unit = torch.finfo(case.parameters[0].dtype).eps
    info = torch.finfo(case.x.dtype)
    rounded = info.eps * (np.abs(expected) + info.smallest_normal)
    assert_near(results[0], expected, rounded + 2 * unit * (np.abs(arrays[0]).max() + np.abs(expected)), "y")


def check_backward(case, op, results, unit):
    arrays = _, left, right, *_ = [as_numpy(p) for p in case.parameters]
    rows = oracle.per_function(as_numpy(case.x), len(left))
    g = oracle.per_function(as_numpy(case.grad), len(left))
    table = oracle.table_1(rows, *arrays)
    steepest = np.abs(table.x).max(initial=0, axis=1)
    if op != BACKWARD_PARAMETERS:
        expected = oracle.from_function(table.x * g, case.x.shape)
        info = torch.finfo(case.x.dtype)
        own = info.eps + 2 * torch.finfo(case.parameters[0].dtype).eps
        by_x, *results = results
        assert_near(by_x, expected, own * (np.abs(expected) + info.smallest_normal), "grad of x")
    # The sums in double are more accurate, but the parameters' gradients are rounded to float at the end.
    distance = np.maximum(1, np.maximum(np.abs(rows - left[:, None]), np.abs(rows - right[:, None])))
    scale = unit * (np.abs(g) * distance).sum(1)
    for name, actual, row in zip(NAMES, results, table[1:]):
        terms = row * (g[:, None] if name == "points" else g)
        bound = scale[:, None] if name == "points" else scale
        assert_near(actual, terms.sum(-1), bound * (np.maximum(1, steepest) if "bound" in name else 1), name)


def check_phase1(case, results):
    relu, mean, deviation = results
    assert torch.equal(relu, case.x.relu())
    rows = oracle.per_function(as_numpy(case.x), case.x.shape[1])
    unit = torch.finfo(mean.dtype).eps
    expected = rows.mean(1)
    std = rows.std(1)
    assert_near(mean, expected, unit * (np.abs(expected) + std), "mean")
    squares = ((rows - expected[:, None]) ** 2).sum(1)
    assert_near(deviation, squares, 20 * unit * squares + unit**2, "deviation")
