"""Funnel ReLU as ops: y = max(x, T(x)) with T a depthwise 3x3 convolution and a batch norm.

=============================  ==================================================================
``pwlu_det::frelu``            in training: the norm takes its statistics from the batch
``pwlu_det::frelu_inference``  the norm's statistics are fixed, and folded into the convolution
=============================  ==================================================================

Each has a ``_backward`` with all gradients. They keep ``x`` and one more tensor of its size (the first the
convolution's output, the second its own); the plain operations keep three. Of equals ``x`` gets the gradient.

The first takes statistics of all elements, in two places, where several processes have to pool theirs. Cut
there it is four ops without gradients of their own, of which :func:`frelu_sync` makes one that has them:

=====================================  ==========================================================
``pwlu_det::frelu_convolve``           the convolution's output, its mean and variance
``pwlu_det::frelu_normalise``          y from these
``pwlu_det::frelu_norm_sums``          gradients of the norm's weight and bias
``pwlu_det::frelu_convolve_backward``  the other gradients, from these over the number of elements
=====================================  ==========================================================

Arithmetic is in float32 (float64 for float64); results have the dtype and the memory layout of ``x``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pwlu_det.ops.pointwise import check_input

_NORM = "Tensor norm_weight, Tensor norm_bias, float eps"
_SAVED = "Tensor x, Tensor conv, Tensor mean, Tensor var"

for _schema in (
    f"frelu(Tensor x, Tensor weight, Tensor bias, {_NORM}) -> (Tensor, Tensor, Tensor, Tensor)",
    f"frelu_backward(Tensor grad, {_SAVED}, Tensor weight, Tensor bias, {_NORM})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "frelu_inference(Tensor x, Tensor weight, Tensor bias) -> Tensor",
    "frelu_inference_backward(Tensor grad, Tensor x, Tensor y, Tensor weight, Tensor bias)"
    " -> (Tensor, Tensor, Tensor)",
    "frelu_convolve(Tensor x, Tensor weight, Tensor bias) -> (Tensor, Tensor, Tensor)",
    f"frelu_normalise({_SAVED}, {_NORM}) -> Tensor",
    f"frelu_norm_sums(Tensor grad, {_SAVED}, {_NORM}) -> Tensor",
    f"frelu_convolve_backward(Tensor grad, {_SAVED}, Tensor weight, Tensor bias, {_NORM}, Tensor norm_means)"
    " -> (Tensor, Tensor, Tensor)",
):
    torch.library.define(f"pwlu_det::{_schema[: _schema.index('(')]}", _schema[_schema.index("(") :])


def frelu(
    x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """max(x, BatchNorm(DepthwiseConv3x3(x))) with the statistics of the batch (Ma et al. 2020).

    Args:
        x: ``[B, C, H, W]`` in float32, float64, float16 or bfloat16, of two values or more a channel.
        weight: of the convolution (padding 1, stride 1), ``[C, 1, 3, 3]``.
        bias: of the convolution, ``[C]``.
        norm_weight: gamma, ``[C]``.
        norm_bias: beta, ``[C]``.
        eps: what is added to the variance.

    Returns:
        y, and the mean and population variance of the convolution's output, ``[C]`` in float32 (float64 for
        float64), not differentiable: what running statistics are made of.

    Raises:
        ValueError: a shape or dtype other than those.
    """
    check_arguments(x, weight=weight, bias=bias, norm_weight=norm_weight, norm_bias=norm_bias)
    if x.numel() <= x.shape[1]:
        raise ValueError(f"frelu: x has shape {tuple(x.shape)}; statistics need two values for each channel")
    y, _, mean, var = torch.ops.pwlu_det.frelu(x, weight, bias, norm_weight, norm_bias, eps)
    return y, mean.detach(), var.detach()


def frelu_inference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """max(x, DepthwiseConv3x3(x)); arguments and errors are those of :func:`frelu`.

    A batch norm with fixed statistics is folded into ``weight`` and ``bias`` by the caller.
    """
    check_arguments(x, weight=weight, bias=bias)
    return torch.ops.pwlu_det.frelu_inference(x, weight, bias)


def check_arguments(x: Tensor, **parameters: Tensor) -> None:
    check_input("frelu", x)
    if x.dim() != 4:
        raise ValueError(f"frelu: x has shape {tuple(x.shape)}; [B, C, H, W] is needed")
    for name, parameter in parameters.items():
        expected = (x.shape[1], 1, 3, 3) if name == "weight" else (x.shape[1],)
        if parameter.shape != expected:
            raise ValueError(
                f"frelu: {name} has shape {tuple(parameter.shape)}; for x of shape {tuple(x.shape)} it "
                f"must be {list(expected)}"
            )


# --- plain torch, on every device that no kernel of its own is registered for -------------------


def _plain(op: str) -> Callable:
    def register(function):
        torch.library.impl(f"pwlu_det::{op}", "CompositeExplicitAutograd", function)
        return function

    return register


def _widen(x: Tensor, *others: Tensor) -> list[Tensor]:
    """All in the dtype that is computed in for ``x``."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return [tensor.to(dtype) for tensor in (x, *others)]


def _channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _like(x: Tensor, values: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(values)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(*_widen(x, weight, bias), padding=1, groups=x.shape[1])


def _convolve_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    c = x.shape[1]
    return torch.ops.aten.convolution_backward(
        *(grad, x, weight, [c], [1, 1], [1, 1], [1, 1], False, [0, 0], c, [True, True, True])
    )


@_plain("frelu_convolve")
def _convolve_with_statistics(x, weight, bias):
    """``[C]`` of zeros are the statistics of nothing."""
    conv = _like(x, _convolve(x, weight, bias))
    (wide,) = _widen(conv)
    if x.numel() == 0:
        return conv, wide.new_zeros(x.shape[1]), wide.new_zeros(x.shape[1])
    var, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
    return conv, mean, var


@_plain("frelu_normalise")
def _normalise(x, conv, mean, var, norm_weight, norm_bias, eps):
    wide, norm_weight, norm_bias = _widen(conv, norm_weight, norm_bias)
    normed = (wide - _channel(mean)) * _channel((var + eps).rsqrt() * norm_weight) + _channel(norm_bias)
    return _like(x, torch.maximum(x, normed.to(x.dtype)))


def _norm_gradient(grad, x, conv, mean, var, norm_weight, norm_bias, eps):
    """The convolution's output without its mean and deviation, and the gradient of the norm's output."""
    wide, g, conv, gamma, beta = _widen(x, grad, conv, norm_weight, norm_bias)
    normal = (conv - _channel(mean)) * _channel((var + eps).rsqrt())
    return normal, torch.where(normal * _channel(gamma) + _channel(beta) > wide, g, 0.0)


@_plain("frelu_norm_sums")
def _norm_sums(*arguments):
    """``[2, C]`` in what is computed in."""
    normal, to_norm = _norm_gradient(*arguments)
    return torch.stack([(to_norm * normal).sum((0, 2, 3)), to_norm.sum((0, 2, 3))])


@_plain("frelu_convolve_backward")
def _convolve_backward_in_training(
    grad, x, conv, mean, var, weight, bias, norm_weight, norm_bias, eps, norm_means
):
    normal, to_norm = _norm_gradient(grad, x, conv, mean, var, norm_weight, norm_bias, eps)
    wide, g, wide_weight, gamma = _widen(x, grad, weight, norm_weight)
    # The batch norm's backward: the mean and the variance depend on every element, too.
    centred = to_norm - _channel(norm_means[1]) - normal * _channel(norm_means[0])
    by_conv = centred * _channel(gamma * (var + eps).rsqrt())
    by_x, by_weight, by_bias = _convolve_backward(by_conv, wide, wide_weight)
    return _like(x, g - to_norm + by_x), by_weight.to(weight.dtype), by_bias.to(bias.dtype)


@_plain("frelu")
def _frelu(x, weight, bias, *norm):
    conv, mean, var = _convolve_with_statistics(x, weight, bias)
    return _normalise(x, conv, mean, var, *norm), conv, mean, var


@_plain("frelu_backward")
def _frelu_backward(grad, x, conv, mean, var, weight, bias, *norm):
    saved = grad, x, conv, mean, var
    sums = _norm_sums(*saved, *norm)
    means = sums / max(1, x.numel() // x.shape[1])
    grads = _convolve_backward_in_training(*saved, weight, bias, *norm, means)
    return *grads, *(value.to(parameter.dtype, copy=True) for value, parameter in zip(sums, norm))


@_plain("frelu_inference")
def _inference(x, weight, bias):
    return _like(x, torch.maximum(x, _convolve(x, weight, bias).to(x.dtype)))


@_plain("frelu_inference_backward")
def _inference_backward(grad, x, y, weight, bias):
    wide, g, wide_weight = _widen(x, grad, weight)
    to_conv = torch.where(y > x, g, 0.0)
    by_x, by_weight, by_bias = _convolve_backward(to_conv, wide, wide_weight)
    return _like(x, g - to_conv + by_x), by_weight.to(weight.dtype), by_bias.to(bias.dtype)


# --- fake kernels -------------------------------------------------------------------------------


def _wide_like(x, *shape):
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


@torch.library.register_fake("pwlu_det::frelu")
def _frelu_fake(x, *_others):
    return torch.empty_like(x), *_convolve_fake(x)


@torch.library.register_fake("pwlu_det::frelu_convolve")
def _convolve_fake(x, *_parameters):
    return torch.empty_like(x), _wide_like(x, x.shape[1]), _wide_like(x, x.shape[1])


@torch.library.register_fake("pwlu_det::frelu_normalise")
@torch.library.register_fake("pwlu_det::frelu_inference")
def _output_fake(x, *_others):
    return torch.empty_like(x)


@torch.library.register_fake("pwlu_det::frelu_norm_sums")
def _norm_sums_fake(_grad, x, *_others):
    return _wide_like(x, 2, x.shape[1])


@torch.library.register_fake("pwlu_det::frelu_backward")
def _frelu_backward_fake(_grad, x, _conv, _mean, _var, *others):
    *parameters, _eps = others
    return torch.empty_like(x), *(p.new_empty(p.shape) for p in parameters)


@torch.library.register_fake("pwlu_det::frelu_convolve_backward")
def _convolve_backward_fake(_grad, x, _conv, _mean, _var, *others):
    return torch.empty_like(x), *(p.new_empty(p.shape) for p in others[:2])


@torch.library.register_fake("pwlu_det::frelu_inference_backward")
def _inference_backward_fake(_grad, x, _y, *parameters):
    return torch.empty_like(x), *(p.new_empty(p.shape) for p in parameters)


# --- autograd -----------------------------------------------------------------------------------


def _save_frelu(ctx, inputs, output):
    x, *parameters, ctx.eps = inputs
    _, conv, mean, var = output
    ctx.save_for_backward(x, conv, mean, var, *parameters)
    ctx.set_materialize_grads(False)  # only y has one; the convolution's output would get a tensor of zeros


def _frelu_autograd(ctx, grad, *_nones):
    if grad is None:
        return (None,) * 6
    return *torch.ops.pwlu_det.frelu_backward(grad, *ctx.saved_tensors, ctx.eps), None


def _save_inference(ctx, inputs, output):
    x, weight, bias = inputs
    ctx.save_for_backward(x, output, weight, bias)


def _inference_autograd(ctx, grad):
    return torch.ops.pwlu_det.frelu_inference_backward(grad, *ctx.saved_tensors)


torch.library.register_autograd("pwlu_det::frelu", _frelu_autograd, setup_context=_save_frelu)
torch.library.register_autograd(
    "pwlu_det::frelu_inference", _inference_autograd, setup_context=_save_inference
)
