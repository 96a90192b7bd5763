"""Self-learnable activation function of Goyal et al. 2019."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pwlu_det import ops
from pwlu_det.activations.registry import register_activation


@register_activation("slaf")
class SLAF(nn.Module):
    """A polynomial, sum over j < 4 of a_j * x^j, for each channel.

    The start is ours: the least-squares fit of ReLU on [-3, 3], 9/32 + x/2 + 5/32 x^2. A polynomial leaves
    all bounds outside the range that it was fitted on, more so with every layer: Molina et al. 2020 report
    undefined values in training. So in a ResNet ReLU stays, by default, where a block's shortcut was added.

    Attributes:
        coefficients: a, ``[C, 4]``.
    """

    def __init__(self, num_channels: int):
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor([9 / 32, 1 / 2, 5 / 32, 0.0]).repeat(num_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        return ops.slaf(x, self.coefficients)
