"""Parameters and inputs of PWLU, and the comparison of its op with the oracle."""

import numpy as np
import oracle
import torch

from pwlu_det.ops import pwlu

NAMES = ("x", "points", "left_bound", "right_bound", "left_slope", "right_slope")


def make_parameters(num_functions, n, dtype=torch.float32):
    """Random points and slopes; knots are exact in float32, since the intervals are powers of two."""
    interval = 4 / 2 ** (n.bit_length() - 1)
    left_bound = torch.tensor([-2.0, 0.5, -5.0])[:num_functions]
    points, slopes = torch.randn(num_functions, n + 1), torch.randn(2, num_functions)
    parameters = points, left_bound, left_bound + n * interval, *slopes
    return [p.to(dtype).requires_grad_() for p in parameters]


def make_input(shape, parameters, dtype=torch.float32):
    """Values inside and outside the bounds; every other one is on the grid of knots, continued outside."""
    points, left, right = (as_numpy(p) for p in parameters[:3])
    n = points.shape[1] - 1
    u = np.random.default_rng(0).uniform(-0.5, 1.5, (len(left), np.prod(shape, dtype=int) // len(left))) * n
    u[:, ::2] = np.round(u[:, ::2])
    u[:, :1], u[:, 2:3] = 0, n  # the bounds themselves
    x = oracle.from_function(left[:, None] + u * (right - left)[:, None] / n, shape)
    return torch.from_numpy(np.ascontiguousarray(x)).to(dtype)


def as_numpy(tensor):
    return tensor.detach().double().numpy()


def assert_near(actual, expected, unit, scale, name):
    difference = np.abs(as_numpy(actual) - expected)
    assert np.all(difference <= unit * scale), f"{name}: off by up to {difference.max():.3g}, {unit=:.3g}"


def check(x, parameters, grad=None):
    """Compare the output and all six gradients with the oracle; return the output."""
    x = x.detach().requires_grad_()
    y = pwlu(x, *parameters)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, torch.empty_like(x).stride())
    grad = torch.randn(x.shape).to(x.dtype) if grad is None else grad
    grads = torch.autograd.grad(y, (x, *parameters), grad)
    for name, actual, source in zip(NAMES, grads, (x, *parameters)):
        assert (actual.shape, actual.dtype) == (source.shape, source.dtype), name

    arrays = points, *_ = [as_numpy(p) for p in parameters]
    elements, g = (oracle.per_function(as_numpy(t), len(points)) for t in (x, grad))
    expected = oracle.from_function(oracle.forward(elements, *arrays), x.shape)
    rows = oracle.table_1(elements, *arrays)
    # u = (x - B_L)/d is up to N, so t has an error of up to N rounding units of the parameters' dtype;
    # sums add some more. Finally, the dtype of x rounds once.
    unit = (64 + 2 * points.shape[1]) * torch.finfo(parameters[0].dtype).eps
    rounded = unit + torch.finfo(x.dtype).eps
    assert_near(y, expected, rounded, np.abs(points).max() + np.abs(expected), "y")
    expected = oracle.from_function(rows.x * g, x.shape)
    steepest = np.abs(rows.x).max(initial=0)
    assert_near(grads[0], expected, rounded, steepest + np.abs(expected), "x")
    for name, actual, row in zip(NAMES[1:], grads[1:], rows[1:]):
        terms = row * (g[:, None] if name == "points" else g)
        # Relative to the sum of magnitudes: the terms may cancel.
        scale = np.abs(terms).sum(-1) + np.abs(g).sum() * (1 if name == "points" else steepest)
        assert_near(actual, terms.sum(-1), unit, scale, name)
    return y
