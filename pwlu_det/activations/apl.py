"""The adaptive piecewise linear unit of Agostinelli et al. 2015."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pwlu_det import ops
from pwlu_det.activations.registry import check_option, register_activation

MAX_HINGES = 32
"""The kernels support at most 64 parameters per channel, and each hinge has two."""


@register_activation("apl")
class APL(nn.Module):
    """max(0, x) + sum over s = 1 ... S of a_s * max(0, b_s - x).

    The authors learn slopes and offsets per neuron, ``[S, C, H, W]``. Here all positions of a channel share
    them, because a detector's images differ in size.

    Args:
        num_channels: C of the ``[B, C, *]`` input.
        num_hinges: S. The authors' default is 5; Zhou et al. 2021 find that unstable and use 3.

    Attributes:
        slopes: a, ``[S, C]``, initialized from U(-0.5/S, 0.5/S).
        offsets: b, ``[S, C]``, initialized from a normal distribution with mean 0 and standard deviation 0.5.

    Raises:
        OptionError: ``num_hinges`` is out of range.
    """

    def __init__(self, num_channels: int, num_hinges: int = 3):
        super().__init__()
        fits = 1 <= num_hinges <= MAX_HINGES
        check_option("APL", "num_hinges", num_hinges, fits, f"at least 1 and at most {MAX_HINGES}")
        self.slopes = nn.Parameter((torch.rand(num_hinges, num_channels) - 0.5) / num_hinges)
        self.offsets = nn.Parameter(torch.randn(num_hinges, num_channels) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        return ops.apl(x, self.slopes, self.offsets)
