"""The ACON family of Ma et al. 2021, "Activate or Not"."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pwlu_det import ops
from pwlu_det.activations.registry import check_option, register_activation
from pwlu_det.ops.library import compute_dtype, without_autocast

MODES = ("channel", "layer", "pixel")
MAX_REDUCTION = 1024  # the reduction is also the minimum number of hidden channels


@register_activation("swish")
class Swish(nn.Module):
    """x * sigmoid(x), or x * sigmoid(beta * x) with ``trainable_beta`` (Ramachandran et al. 2017).

    Attributes:
        beta: ``[C]``, initialized to 1, or None without ``trainable_beta``.
    """

    def __init__(self, num_channels: int, trainable_beta: bool = False):
        super().__init__()
        self.num_channels = num_channels
        self.beta = nn.Parameter(torch.ones(num_channels)) if trainable_beta else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        if self.beta is not None:
            return ops.swish(x, self.beta)
        # A buffer that is not in the state dict would be lost if the module is created on the meta device.
        return ops.swish(x, x.new_ones(self.num_channels, dtype=compute_dtype(x.dtype)))


@register_activation("acon_a")
class AconA(Swish):
    """x * sigmoid(beta * x) (Table 1): Swish with a trainable beta.

    Attributes:
        beta: ``[C]``, initialized to 1.
    """

    def __init__(self, num_channels: int):
        super().__init__(num_channels, trainable_beta=True)


@register_activation("acon_b")
class AconB(nn.Module):
    """(1-p)x * sigmoid(beta (1-p)x) + px (equation 3).

    Attributes:
        p: ``[C]``, initialized to 0.25, as in PReLU, of which ACON-B is a smooth version.
        beta: ``[C]``, initialized to 1.
    """

    def __init__(self, num_channels: int):
        super().__init__()
        self.p = nn.Parameter(torch.full((num_channels,), 0.25))
        self.beta = nn.Parameter(torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        return ops.acon_b(x, self.p, self.beta)


@register_activation("acon_c")
class AconC(nn.Module):
    """(p1-p2)x * sigmoid(beta (p1-p2)x) + p2 x (equation 4).

    Attributes:
        p1, p2: ``[C]``, initialized from a standard normal distribution, as in the authors' code.
        beta: ``[C]``, initialized to 1.
    """

    def __init__(self, num_channels: int):
        super().__init__()
        self.p1 = nn.Parameter(torch.randn(num_channels))
        self.p2 = nn.Parameter(torch.randn(num_channels))
        self.beta = nn.Parameter(torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        return ops.acon_c(x, self.p1, self.p2, self.beta)


@register_activation("meta_acon")
class MetaAcon(nn.Module):
    """ACON-C with a beta computed from the input (section 3.1, Table 5), in one of three modes:

    - channel: sigmoid(BN(fc2(BN(fc1(GAP(x)))))), one beta per sample and channel. The norms and the biases of
      the 1x1 convolutions follow the authors' code;
    - layer: sigmoid(sum over channels of GAP(x)), one beta per sample;
    - pixel: sigmoid(x), one beta per element.

    Args:
        num_channels: C of the ``[B, C, *]`` input.
        mode: "channel", "layer" or "pixel".
        reduction: r; there are max(r, C // r) channels between fc1 and fc2.
        norm: a function that takes the number of channels and returns a norm. The statistics of a batch norm
            are over the batch only: global average pooling leaves one value per sample and channel.

    Attributes:
        p1, p2: ``[C]``, initialized from a standard normal distribution.
        fc1, bn1, fc2, bn2: the layers that compute beta, in mode "channel" only.

    Raises:
        OptionError: an option is out of range.
    """

    def __init__(
        self,
        num_channels: int,
        mode: str = "channel",
        reduction: int = 16,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ):
        super().__init__()
        check_option("Meta-ACON", "mode", mode, mode in MODES, f"one of {', '.join(MODES)}")
        fits = 1 <= reduction <= MAX_REDUCTION
        check_option("Meta-ACON", "reduction", reduction, fits, f"at least 1 and at most {MAX_REDUCTION}")
        self.mode = mode
        self.p1 = nn.Parameter(torch.randn(num_channels))
        self.p2 = nn.Parameter(torch.randn(num_channels))
        if mode == "channel":
            hidden = max(reduction, num_channels // reduction)
            self.fc1 = nn.Conv2d(num_channels, hidden, kernel_size=1)
            self.bn1 = norm(hidden)
            self.fc2 = nn.Conv2d(hidden, num_channels, kernel_size=1)
            self.bn2 = norm(num_channels)

    def extra_repr(self) -> str:
        return f"{len(self.p1)}, mode={self.mode}"

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout.

        Raises:
            ValueError: the batch has one sample, in mode "channel" with the norms' batch statistics.
        """
        if self.mode == "pixel":
            return ops.meta_acon_pixel(x, self.p1, self.p2)
        with without_autocast(x):  # cheap, so computed in full precision
            beta = self._beta(x)
        # Samples are independent, so they can be treated as additional channels of a single sample.
        num_samples = x.shape[0]
        as_one = x.reshape(1, num_samples * x.shape[1], *x.shape[2:])
        y = ops.acon_c(as_one, self.p1.repeat(num_samples), self.p2.repeat(num_samples), beta.flatten())
        y = y.reshape(x.shape)
        # In channels_last, the first reshape had to copy.
        return y if y.stride() == x.stride() else torch.empty_like(x).copy_(y)

    def _beta(self, x: Tensor) -> Tensor:
        """beta, ``[B, C]``, in float32 or wider."""
        dims = list(range(2, x.dim()))
        dtype = compute_dtype(x.dtype)
        pooled = x.mean(dims, dtype=dtype) if dims else x.to(dtype)
        if self.mode == "layer":
            return pooled.sum(1, keepdim=True).sigmoid().expand_as(pooled)
        if x.shape[0] == 1:
            self._check_single_sample()
        pooled = pooled.to(self.fc1.weight.dtype)[..., None, None]
        return self.bn2(self.fc2(self.bn1(self.fc1(pooled)))).sigmoid().flatten(1)

    def _check_single_sample(self) -> None:
        if _normalizes_single_batch(self.bn1) or _normalizes_single_batch(self.bn2):
            raise ValueError(
                "Meta-ACON: the batch has one sample, and global average pooling leaves one value per "
                "channel: too few for the statistics of batch norm in training. Use two images or more per "
                "GPU, SyncBN or FrozenBN (MODEL.RESNETS.NORM), or mode layer or pixel "
                "(MODEL.ACTIVATION.META_ACON.MODE)"
            )


def _normalizes_single_batch(norm: nn.Module) -> bool:
    """Whether the norm is a batch norm with the statistics of the batch of this process alone."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return False
    pooled = type(norm) is not nn.BatchNorm2d and dist.is_initialized() and dist.get_world_size() > 1
    return (norm.training or norm.running_mean is None) and not pooled
