"""Relatives of ReLU with a few numbers for each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pwlu_det import ops
from pwlu_det.activations.registry import register_activation


@register_activation("prelu")
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
        return ops.prelu(x, self.slope)


@register_activation("srelu")
class SReLU(nn.Module):
    """S-shaped ReLU: x between two thresholds, lines of other slopes beyond them (Jin et al. 2016).

    The start is leaky ReLU, and ours: thresholds 0 and 1, slopes 0.01 and 1.

    Attributes:
        left, left_slope, right, right_slope: thresholds and slopes, ``[C]``.
    """

    def __init__(self, num_channels: int):
        super().__init__()
        for name, start in (("left", 0.0), ("left_slope", 0.01), ("right", 1.0), ("right_slope", 1.0)):
            self.register_parameter(name, nn.Parameter(torch.full((num_channels,), start)))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        return ops.srelu(x, self.left, self.left_slope, self.right, self.right_slope)


@register_activation("mixture")
class Mixture(nn.Module):
    """w_1 * x + w_2 * ReLU(x) (Manessi and Rozza 2018, with identity and ReLU as the functions mixed).

    The start is leaky ReLU, and ours: w_1 = 0.01, w_2 = 0.99. The weights are free, not kept to a sum of 1.

    Attributes:
        identity_share, relu_share: w_1 and w_2, ``[C]``.
    """

    def __init__(self, num_channels: int):
        super().__init__()
        self.identity_share = nn.Parameter(torch.full((num_channels,), 0.01))
        self.relu_share = nn.Parameter(torch.full((num_channels,), 0.99))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        return ops.mixture(x, self.identity_share, self.relu_share)


@register_activation("maxout")
class Maxout(nn.Module):
    """The larger of two linear functions (Goodfellow et al. 2013, k = 2): ``[B, 2C, *]`` to ``[B, C, *]``.

    The functions are the first and the second half of the channels of what feeds it, which must have twice
    the output's: so it cannot take the place of another activation in a network that is there.
    """

    keeps_channels = False

    def __init__(self, num_channels: int):
        super().__init__()
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 2C, *]`` to ``[B, C, *]`` of the same dtype and layout.

        Raises:
            ValueError: ``x`` has another number of channels.
        """
        if x.dim() < 2 or x.shape[1] != 2 * self.num_channels:
            raise ValueError(
                f"Maxout: x has shape {tuple(x.shape)}; [B, {2 * self.num_channels}, *] is needed, "
                f"two channels for each of {self.num_channels}"
            )
        return torch.maximum(*x.chunk(2, dim=1))
