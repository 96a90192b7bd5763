"""The parameters of a PWLU that is another activation, by least squares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RIDGE = 1e-6
"""Weight of the interpolating function, which decides where there are no inputs."""
MAX_ELEMENTS = 1 << 23
"""Size of the matrices of a fit, which is done for as many channels at a time."""


@torch.no_grad()
def fit(
    function: Callable[[Tensor], Tensor], x: Tensor, left: Tensor, right: Tensor, num_intervals: int
) -> tuple[Tensor, ...]:
    """Fit PWLUs to ``function`` by least squares over inputs ``x``, ``[P, S]``, outer slopes included.

    Returns:
        The parameters in the order of the op's arguments, in float64; the bounds are ``left`` and ``right``.
    """
    channels = max(MAX_ELEMENTS // (x.shape[1] * (num_intervals + 3)), 1)
    parts = zip(*(t.double().split(channels) for t in (x, left, right)))
    solved = [_solve(function, *part, num_intervals) for part in parts]
    return tuple(torch.cat(values) for values in zip(*solved))


def bounds_of(x: Tensor, num_sigma: float, min_width: float) -> tuple[Tensor, Tensor]:
    """``num_sigma`` standard deviations to either side of the mean of inputs ``[P, S]``, but within them."""
    mean = x.mean(1)
    half = (num_sigma * x.std(1, correction=0)).clamp(min=min_width / 2)
    left, right = torch.maximum(mean - half, x.amin(1)), torch.minimum(mean + half, x.amax(1))
    narrow = right - left < min_width
    return torch.where(narrow, mean - half, left), torch.where(narrow, mean + half, right)


def normal_quantiles(number: int = 4096) -> Tensor:
    """Inputs ``[S]`` in float64 that are distributed like a standard normal variable."""
    return torch.special.ndtri((torch.arange(number, dtype=torch.float64) + 0.5) / number)


def _solve(
    function: Callable[[Tensor], Tensor], x: Tensor, left: Tensor, right: Tensor, n: int
) -> tuple[Tensor, ...]:
    knots = torch.lerp(left[:, None], right[:, None], torch.linspace(0, 1, n + 1).to(x))
    step = (right - left)[:, None]
    slopes = [
        (function(knots[:, :1]) - function(knots[:, :1] - step)) / step,
        (function(knots[:, -1:] + step) - function(knots[:, -1:])) / step,
    ]
    start = torch.cat([function(knots), *slopes], 1)
    basis = _basis(x, left, right, n)
    residual = function(x)[..., None] - basis @ start[..., None]
    gram = basis.mT @ basis
    scale = gram.diagonal(dim1=1, dim2=2).amax(1).clamp(min=1.0)
    gram += RIDGE * scale[:, None, None] * torch.eye(gram.shape[1]).to(x)
    solution = start + torch.linalg.solve(gram, basis.mT @ residual)[..., 0]
    return solution[:, :-2], left, right, solution[:, -2], solution[:, -1]


def _basis(x: Tensor, left: Tensor, right: Tensor, n: int) -> Tensor:
    """The derivatives of a PWLU with respect to its points and outer slopes, ``[C, S, N + 3]``."""
    u = (x - left[:, None]) / (right - left)[:, None] * n
    hats = (1 - (u.clamp(0, n)[..., None] - torch.arange(n + 1).to(x)).abs()).clamp(min=0)
    outer = [(x - left[:, None]).clamp(max=0), (x - right[:, None]).clamp(min=0)]
    return torch.cat([hats, torch.stack(outer, -1)], -1)
