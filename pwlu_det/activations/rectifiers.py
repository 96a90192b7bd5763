"""Variants of ReLU with a few parameters per channel, and Maxout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pwlu_det import ops
from pwlu_det.activations.registry import register_activation


@register_activation("prelu")
class PReLU(nn.Module):
    """max(x, 0) + p * min(x, 0) (He et al. 2015).

    Attributes:
        slope: p, ``[C]``, initialized to 0.25.
    """

    def __init__(self, num_channels: int):
        super().__init__()
        self.slope = nn.Parameter(torch.full((num_channels,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        return ops.prelu(x, self.slope)


@register_activation("srelu")
class SReLU(nn.Module):
    """S-shaped ReLU: x between two thresholds, and lines with other slopes outside (Jin et al. 2016).

    Our initialization is leaky ReLU: thresholds 0 and 1, slopes 0.01 and 1.

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
    """w_1 * x + w_2 * ReLU(x): a mixture of identity and ReLU (Manessi and Rozza 2018).

    Our initialization is leaky ReLU: w_1 = 0.01, w_2 = 0.99. The weights are not constrained to sum to 1.

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
    """The maximum of two linear functions (Goodfellow et al. 2013, k = 2): ``[B, 2C, *]`` to ``[B, C, *]``.

    The two functions are the first and the second half of the input channels. As the input needs twice as
    many channels as the output, Maxout cannot replace an activation of an existing network.
    """

    keeps_channels = False

    def __init__(self, num_channels: int):
        super().__init__()
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 2C, *]`` to ``[B, C, *]`` of the same dtype and layout.

        Raises:
            ValueError: ``x`` does not have 2C channels.
        """
        if x.dim() < 2 or x.shape[1] != 2 * self.num_channels:
            raise ValueError(
                f"Maxout: x has shape {tuple(x.shape)}; [B, {2 * self.num_channels}, *] is needed, "
                f"two input channels for each of the {self.num_channels} output channels"
            )
        return torch.maximum(*x.chunk(2, dim=1))
