"""The safe Padé activation unit of Molina et al. 2020, of orders 5 and 4."""

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
"""a_0 ... a_5 and b_1 ... b_4 from Table 6 of the paper: least-squares fits on [-3, 3], accurate to 0.03."""


@register_activation("pau")
class PAU(nn.Module):
    """P(x) / Q(x), P = sum of a_j x^j, j = 0 ... 5, and Q = 1 + sum of |b_k x^k|, k = 1 ... 4 (equation 2).

    Args:
        num_channels: C of the ``[B, C, *]`` input.
        channel_wise: learn one function per channel (our addition) instead of one per layer (the authors').
        start: the function approximated at initialization: "leaky_relu" (with slope 0.01, the authors') or
            "relu".

    Attributes:
        numerator: a, ``[1, 6]``, or ``[C, 6]`` if channel-wise.
        denominator: b, ``[1, 4]``, or ``[C, 4]`` if channel-wise. Only its magnitude matters.

    Raises:
        OptionError: ``start`` is unknown.
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
    """Randomized PAU: in training, each coefficient c is drawn per element from U((1-alpha)c, (1+alpha)c).

    See equation 3. In evaluation, it is PAU. The authors' alpha is not known to us; our default is 0.01.

    Args:
        alpha: half the relative width of the interval that coefficients are drawn from, in [0, 1].

    Raises:
        OptionError: ``start`` is unknown, or ``alpha`` is out of range.
    """

    def __init__(
        self, num_channels: int, channel_wise: bool = False, start: str = "leaky_relu", alpha: float = 0.01
    ):
        super().__init__(num_channels, channel_wise, start)
        check_option("RPAU", "alpha", alpha, 0 <= alpha <= 1, "in [0, 1]")
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout; reproducible with ``torch.manual_seed``."""
        if not self.training:
            return super().forward(x)
        seed = torch.randint(2**62, ())
        return ops.rpau(x, self.numerator, self.denominator, seed, self.alpha)
