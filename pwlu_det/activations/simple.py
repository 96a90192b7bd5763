"""Activations with at most one parameter for each channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReLU(nn.ReLU):
    """max(x, 0)."""

    def __init__(self, num_channels: int, inplace: bool = False):
        super().__init__(inplace=inplace)


class Swish(nn.Module):
    """x * sigmoid(x), or with ``trainable_beta`` x * sigmoid(beta * x) (Ramachandran et al. 2017).

    Attributes:
        beta: ``[C]``, 1 at the start; only with ``trainable_beta``.
    """

    def __init__(self, num_channels: int, trainable_beta: bool = False):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(num_channels)) if trainable_beta else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        if self.beta is None:
            return F.silu(x)
        return x * torch.sigmoid(per_channel(self.beta, x) * x)


class PReLU(nn.Module):
    """max(x, 0) + p * min(x, 0) (He et al. 2015).

    Attributes:
        slope: p, ``[C]``, 0.25 at the start.
    """

    def __init__(self, num_channels: int):
        super().__init__()
        self.slope = nn.Parameter(torch.full((num_channels,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        with torch.autocast(x.device.type, enabled=False):  # it would change the dtype of x
            return F.prelu(x, self.slope.to(x.dtype))


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """View ``[C]`` in the dtype of ``x`` so that it broadcasts against ``[B, C, *]``."""
    return parameter.to(x.dtype).view(-1, *[1] * (x.dim() - 2))
