"""A PWLU that starts as another activation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pwlu_det.activations.pwlu import PWLU

RIDGE = 1e-6
"""Weight of the interpolating function, which decides where the example has no inputs."""
MAX_ELEMENTS = 1 << 23
"""Size of the matrices of a fit, which is done for as many channels at a time."""


@torch.no_grad()
def fit(site: PWLU, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Fit a PWLU to ``function`` by least squares over inputs ``x``, ``[C, S]``, outer slopes included.

    The bounds are ``num_sigma`` standard deviations to either side of the mean, but within the inputs.
    """
    x = x.double() if site.channel_wise else x.double().reshape(1, -1)
    channels = max(MAX_ELEMENTS // (x.shape[1] * (site.num_intervals + 3)), 1)
    parts = [_solve(site, function, part) for part in x.split(channels)]
    for parameter, values in zip(site._parameter_list(), zip(*parts)):
        parameter.copy_(torch.cat(values))


def _solve(site: PWLU, function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, ...]:
    """The parameters of some channels, in the order of the op's arguments."""
    mean, std = x.mean(1), x.std(1, correction=0)
    half = (site.num_sigma * std).clamp(min=site.MIN_REALIGNED_WIDTH / 2)
    left, right = torch.maximum(mean - half, x.amin(1)), torch.minimum(mean + half, x.amax(1))
    narrow = right - left < site.MIN_REALIGNED_WIDTH
    left, right = torch.where(narrow, mean - half, left), torch.where(narrow, mean + half, right)
    knots = torch.lerp(left[:, None], right[:, None], torch.linspace(0, 1, site.num_intervals + 1).to(x))
    step = (right - left)[:, None]
    slopes = [
        (function(knots[:, :1]) - function(knots[:, :1] - step)) / step,
        (function(knots[:, -1:] + step) - function(knots[:, -1:])) / step,
    ]
    start = torch.cat([function(knots), *slopes], 1)
    basis = _basis(x, left, right, site.num_intervals)
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
