"""The self-learnable activation function of Goyal et al. 2019."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pwlu_det import ops
from pwlu_det.activations.registry import register_activation


@register_activation("slaf")
class SLAF(nn.Module):
    """One polynomial per channel: the sum over j < 4 of a_j * x^j.

    Our initialization is the least-squares fit of ReLU on [-3, 3]: 9/32 + x/2 + 5/32 x^2. Outside the fitted
    range a polynomial is unbounded, and layers compound this: Molina et al. 2020 report undefined values in
    training. Therefore the ReLUs after the shortcut additions of a ResNet are not replaced by default.

    Attributes:
        coefficients: a, ``[C, 4]``.
    """

    def __init__(self, num_channels: int):
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor([9 / 32, 1 / 2, 5 / 32, 0.0]).repeat(num_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        return ops.slaf(x, self.coefficients)
