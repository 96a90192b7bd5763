"""Activations without parameters: those of torch.nn, whose constructors take the number of channels here.

Both that argument and ``inplace``, which timm passes to its ``act_layer``, are optional and ignored.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwlu_det.activations.registry import register_activation
from pwlu_det.ops.library import without_autocast


class _Fixed:
    def __init__(self, num_channels: int | None = None, inplace: bool = False):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        with without_autocast(x):  # autocast would change the dtype of x
            return super().forward(x)


@register_activation("relu")
class ReLU(nn.ReLU):
    """max(x, 0)."""

    def __init__(self, num_channels: int | None = None, inplace: bool = False):
        super().__init__()


@register_activation("relu6")
class ReLU6(_Fixed, nn.ReLU6):
    """min(max(x, 0), 6)."""


@register_activation("leaky_relu")
class LeakyReLU(_Fixed, nn.LeakyReLU):
    """max(x, 0) + 0.01 min(x, 0) (Maas et al. 2013)."""


@register_activation("rrelu")
class RReLU(_Fixed, nn.RReLU):
    """max(x, 0) + a min(x, 0) (Xu et al. 2015).

    In training, a is drawn from U(1/8, 1/3) for each element; in evaluation, it is the mean of that
    distribution. torch's own implementation does not preserve channels_last.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        if not self.training:
            return F.leaky_relu(x, (self.lower + self.upper) / 2)
        slope = torch.empty_like(x).uniform_(self.lower, self.upper)
        return torch.where(x > 0, x, slope * x)


@register_activation("elu")
class ELU(_Fixed, nn.ELU):
    """x if x > 0, else exp(x) - 1 (Clevert et al. 2016, with alpha = 1)."""


@register_activation("celu")
class CELU(_Fixed, nn.CELU):
    """max(x, 0) + min(0, alpha (exp(x / alpha) - 1)) (Barron 2017) with alpha = 1, which equals ELU."""


@register_activation("mish")
class Mish(_Fixed, nn.Mish):
    """x tanh(softplus(x)) (Misra 2019)."""


@register_activation("softplus")
class Softplus(_Fixed, nn.Softplus):
    """log(1 + exp(x)) (Dugas et al. 2000); torch returns x for x > 20."""
