"""Funnel ReLU as ops: y = max(x, T(x)), where T is a depthwise 3x3 convolution followed by a batch norm.

=============================  ==================================================================
``pwlu_det::frelu``            training: the norm uses the statistics of the batch
``pwlu_det::frelu_inference``  the norm's statistics are fixed and folded into the convolution
=============================  ==================================================================

Each op has a ``_backward`` that computes all gradients. The ops save ``x`` and one more tensor of its size
for backward (``frelu`` the convolution's output, ``frelu_inference`` y); the plain operations save three. On
ties, ``x`` gets the gradient.

``frelu`` computes statistics over all elements in two places, where several processes have to pool theirs.
Split there, it becomes four ops that are not differentiable themselves; :func:`frelu_sync` combines them into
a differentiable function:

=====================================  ==========================================================
``pwlu_det::frelu_convolve``           the convolution's output, its mean and its variance
``pwlu_det::frelu_normalise``          y from these
``pwlu_det::frelu_norm_sums``          the gradients of the norm's weight and bias
``pwlu_det::frelu_convolve_backward``  the other gradients, from these divided by the element count
=====================================  ==========================================================

Arithmetic is in float32 (float64 for float64); results have the dtype and memory layout of ``x``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pwlu_det.ops.derivatives import make_differentiable
from pwlu_det.ops.library import call, compute_dtype, define, without_autocast

_X = {"x": "B C H W"}
_SAVED = {**_X, "conv": "x", "mean": "C", "var": "C"}
_CONVOLUTION = {"weight": "C 1 3 3", "bias": "C"}
_NORM = {"norm_weight": "C", "norm_bias": "C", "eps": "float"}
_GRAD = {"grad": "x"}


def frelu(
    x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """max(x, BatchNorm(DepthwiseConv3x3(x))) with the statistics of the batch (Ma et al. 2020).

    Args:
        x: ``[B, C, H, W]`` in float32, float64, float16 or bfloat16, with at least two values per channel.
        weight: weight of the convolution (padding 1, stride 1), ``[C, 1, 3, 3]``.
        bias: bias of the convolution, ``[C]``.
        norm_weight: gamma, ``[C]``.
        norm_bias: beta, ``[C]``.
        eps: a value added to the variance.

    Returns:
        y, and the mean and population variance of the convolution's output for updating running statistics:
        ``[C]`` in float32 (float64 for float64), not differentiable.

    Raises:
        ValueError: a shape or dtype is not one of those above.
    """
    if x.dim() == 4 and x.numel() <= x.shape[1]:
        raise ValueError(f"frelu: x has shape {tuple(x.shape)}; statistics need two values for each channel")
    y, _, mean, var = torch.ops.pwlu_det.frelu(x, weight, bias, norm_weight, norm_bias, eps)
    return y, mean.detach(), var.detach()


def frelu_inference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """max(x, DepthwiseConv3x3(x)); the arguments and errors are those of :func:`frelu`.

    The caller folds a batch norm with fixed statistics into ``weight`` and ``bias``.
    """
    return call("frelu_inference", x, weight, bias)


# --- plain torch, for every device without registered kernels -----------------------------------


def _widen(x: Tensor, *others: Tensor) -> list[Tensor]:
    """Convert all tensors to the compute dtype of ``x``."""
    dtype = compute_dtype(x.dtype)
    return [tensor.to(dtype) for tensor in (x, *others)]


def _channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _like(x: Tensor, values: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(values)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with without_autocast(x):
        return F.conv2d(*_widen(x, weight, bias), padding=1, groups=x.shape[1])


def _statistics(conv: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, ``[C]``; zeros if there are no values."""
    if conv.numel() == 0:  # still functions of conv, so that the autograd graph is the same on all processes
        return conv.sum((0, 2, 3)), conv.sum((0, 2, 3))
    var, mean = torch.var_mean(conv, dim=(0, 2, 3), correction=0)
    return mean, var


def _convolve_backward(
    x: Tensor, weight: Tensor, bias: Tensor, to_x: Tensor, to_conv: Tensor, output_mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias.

    They follow from the gradient that reaches x directly and that of the convolution's output.
    """
    with_x, with_parameters = output_mask
    wide_x, wide_weight, c = *_widen(x, weight), x.shape[1]
    by_x, by_weight, by_bias = torch.ops.aten.convolution_backward(
        *(to_conv, wide_x, wide_weight, [c], [1, 1], [1, 1], [1, 1], False, [0, 0], c),
        (with_x, with_parameters, with_parameters),
    )
    return (
        _like(x, to_x + by_x) if with_x else None,
        by_weight.to(weight.dtype) if with_parameters else None,
        by_bias.to(bias.dtype) if with_parameters else None,
    )


@define("frelu_convolve", {**_X, **_CONVOLUTION}, results=["x", "C", "C"])
def _convolve_with_statistics(x, weight, bias):
    conv = _like(x, _convolve(x, weight, bias))
    return conv, *_statistics(*_widen(conv))


@define("frelu_normalise", {**_SAVED, **_NORM}, results=["x"])
def _normalise(x, conv, mean, var, norm_weight, norm_bias, eps):
    wide, mean, var, norm_weight, norm_bias = _widen(conv, mean, var, norm_weight, norm_bias)
    normed = (wide - _channel(mean)) * _channel((var + eps).rsqrt() * norm_weight) + _channel(norm_bias)
    return _like(x, torch.maximum(x, normed.to(x.dtype)))


def _norm_gradient(grad, x, conv, mean, var, norm_weight, norm_bias, eps):
    """The standardized output of the convolution, and the gradient of the norm's output."""
    wide, g, conv, mean, var, gamma, beta = _widen(x, grad, conv, mean, var, norm_weight, norm_bias)
    normal = (conv - _channel(mean)) * _channel((var + eps).rsqrt())
    return normal, torch.where(normal * _channel(gamma) + _channel(beta) > wide, g, 0.0)


@define("frelu_norm_sums", {**_GRAD, **_SAVED, **_NORM}, results=["2 C"])
def _norm_sums(*arguments):
    normal, to_norm = _norm_gradient(*arguments)
    return torch.stack([(to_norm * normal).sum((0, 2, 3)), to_norm.sum((0, 2, 3))])


@define(
    "frelu_convolve_backward",
    {**_GRAD, **_SAVED, **_CONVOLUTION, **_NORM, "norm_means": "2 C"},
    results=["x", *_CONVOLUTION],
    output_mask=True,
)
def _convolve_backward_in_training(
    grad, x, conv, mean, var, weight, bias, norm_weight, norm_bias, eps, norm_means, output_mask
):
    normal, to_norm = _norm_gradient(grad, x, conv, mean, var, norm_weight, norm_bias, eps)
    _, g, var, gamma, norm_means = _widen(x, grad, var, norm_weight, norm_means)
    # The backward of the batch norm: the mean and the variance depend on every element, too.
    centered = to_norm - _channel(norm_means[1]) - normal * _channel(norm_means[0])
    to_conv = centered * _channel(gamma * (var + eps).rsqrt())
    return _convolve_backward(x, weight, bias, g - to_norm, to_conv, output_mask)


@define("frelu", {**_X, **_CONVOLUTION, **_NORM}, results=["x", "x", "C", "C"])
def _frelu(x, weight, bias, *norm):
    conv, mean, var = _convolve_with_statistics(x, weight, bias)
    return _normalise(x, conv, mean, var, *norm), conv, mean, var


@define(
    "frelu_backward",
    {**_GRAD, **_SAVED, **_CONVOLUTION, **_NORM},
    results=["x", *_CONVOLUTION, "norm_weight", "norm_bias"],
    output_mask=True,
)
def _frelu_backward(grad, x, conv, mean, var, weight, bias, *others):
    *norm, output_mask = others
    saved = grad, x, conv, mean, var
    sums = _norm_sums(*saved, *norm)
    means = sums / max(1, x.numel() // x.shape[1])
    grads = _convolve_backward_in_training(*saved, weight, bias, *norm, means, output_mask)
    if not output_mask[1]:
        return *grads, None, None
    return *grads, *(value.to(parameter.dtype, copy=True) for value, parameter in zip(sums, norm))


@define("frelu_inference", {**_X, **_CONVOLUTION}, results=["x"])
def _inference(x, weight, bias):
    return _like(x, torch.maximum(x, _convolve(x, weight, bias).to(x.dtype)))


@define(
    "frelu_inference_backward",
    {**_GRAD, **_X, "y": "x", **_CONVOLUTION},
    results=["x", *_CONVOLUTION],
    output_mask=True,
)
def _inference_backward(grad, x, y, weight, bias, output_mask):
    _, g = _widen(x, grad)
    to_conv = torch.where(y > x, g, 0.0)
    return _convolve_backward(x, weight, bias, g - to_conv, to_conv, output_mask)


# --- derivatives --------------------------------------------------------------------------------


def plain_frelu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    pool: Callable = lambda mean, var: (mean, var),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op ``frelu`` for autograd to differentiate; ``pool`` is applied to the statistics of the batch."""
    conv = _convolve(x, weight, bias)
    mean, var = pool(*_statistics(conv))
    wide, gamma, beta = _widen(x, norm_weight, norm_bias)
    normed = (conv - _channel(mean)) * _channel((var + eps).rsqrt() * gamma) + _channel(beta)
    return torch.where(normed > wide, normed, wide).to(x.dtype), conv.to(x.dtype), mean, var


def _plain_inference(x, weight, bias):
    conv = _convolve(x, weight, bias).to(x.dtype)
    return torch.where(conv > x, conv, x)


make_differentiable("frelu", plain_frelu, results=("y", "conv", "mean", "var"))
make_differentiable("frelu_inference", _plain_inference)
