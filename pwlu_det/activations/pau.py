"""Padé activation units of Molina et al. 2020, safe, of orders 5 and 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pwlu_det import ops
from pwlu_det.activations.registry import check_option, register_activation

STARTS: dict[str, tuple[list[float], list[float]]] = {
    "leaky_relu": (
        [0.02979246, 0.61837738, 2.32335207, 3.05202660, 1.48548002, 0.25103717],
        [1.14201226, 4.39322834, 0.87154450, 0.34720652],
    ),
    "relu": (
        [0.02996348, 0.61690165, 2.37539147, 3.06608078, 1.52474449, 0.25281987],
        [1.19160814, 4.40811795, 0.91111034, 0.34885983],
    ),
}
"""a_0 ... a_5 and b_1 ... b_4 of the paper's Table 6: least-squares fits on [-3, 3], within 0.03 there."""


@register_activation("pau")
class PAU(nn.Module):
    """P(x) / Q(x), P = sum of a_j x^j, j = 0 ... 5, and Q = 1 + sum of |b_k x^k|, k = 1 ... 4 (equation 2).

    Args:
        num_channels: C of the ``[B, C, *]`` input.
        channel_wise: one function for each channel (ours); else one for the layer, as the authors have it.
        start: what it approximates at first: "leaky_relu" (of slope 0.01, the authors') or "relu".

    Attributes:
        numerator: a, ``[1, 6]``, channel-wise ``[C, 6]``.
        denominator: b, ``[1, 4]``, channel-wise ``[C, 4]``. Only its magnitude counts.

    Raises:
        OptionError: an unknown ``start``.
    """

    def __init__(self, num_channels: int, channel_wise: bool = False, start: str = "leaky_relu"):
        super().__init__()
        check_option("PAU", "start", start, start in STARTS, f"one of {', '.join(STARTS)}")
        numerator, denominator = STARTS[start]
        size = num_channels if channel_wise else 1
        self.numerator = nn.Parameter(torch.tensor(numerator).repeat(size, 1))
        self.denominator = nn.Parameter(torch.tensor(denominator).repeat(size, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        return ops.pau(x, self.numerator, self.denominator)


@register_activation("rpau")
class RPAU(PAU):
    """PAU that in training draws each coefficient c anew for each element, from U((1-alpha)c, (1+alpha)c).

    Equation 3; in evaluation it is PAU. Which alpha the authors took is not known to us: 0.01 is our default.

    Args:
        alpha: half the relative width of the draws, in [0, 1].

    Raises:
        OptionError: an unknown ``start``, or ``alpha`` is out of its range.
    """

    def __init__(
        self, num_channels: int, channel_wise: bool = False, start: str = "leaky_relu", alpha: float = 0.01
    ):
        super().__init__(num_channels, channel_wise, start)
        check_option("RPAU", "alpha", alpha, 0 <= alpha <= 1, "in [0, 1]")
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout; draws follow ``torch.manual_seed``."""
        if not self.training:
            return super().forward(x)
        seed = torch.randint(2**62, ())
        return ops.rpau(x, self.numerator, self.denominator, seed, self.alpha)
