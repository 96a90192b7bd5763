"""Funnel ReLU as ops: y = max(x, T(x)) with T a depthwise 3x3 convolution and a batch norm.

=============================  ==================================================================
``pwlu_det::frelu``            in training: the norm takes its statistics from the batch
``pwlu_det::frelu_inference``  the norm's statistics are fixed, and folded into the convolution
=============================  ==================================================================

Each has a ``_backward`` with all gradients. They keep ``x`` and one more tensor of its size (the first the
convolution's output, the second its own); the plain operations keep three. Of equals ``x`` gets the gradient.

Arithmetic is in float32 (float64 for float64); results have the dtype and the memory layout of ``x``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pwlu_det.ops.pointwise import check_input

torch.library.define(
    "pwlu_det::frelu",
    "(Tensor x, Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "pwlu_det::frelu_backward",
    "(Tensor grad, Tensor x, Tensor conv, Tensor mean, Tensor var, Tensor weight, Tensor bias,"
    " Tensor norm_weight, Tensor norm_bias, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define("pwlu_det::frelu_inference", "(Tensor x, Tensor weight, Tensor bias) -> Tensor")
torch.library.define(
    "pwlu_det::frelu_inference_backward",
    "(Tensor grad, Tensor x, Tensor y, Tensor weight, Tensor bias) -> (Tensor, Tensor, Tensor)",
)


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
    _check_arguments(x, weight=weight, bias=bias, norm_weight=norm_weight, norm_bias=norm_bias)
    if x.numel() <= x.shape[1]:
        raise ValueError(f"frelu: x has shape {tuple(x.shape)}; statistics need two values for each channel")
    y, _, mean, var = torch.ops.pwlu_det.frelu(x, weight, bias, norm_weight, norm_bias, eps)
    return y, mean.detach(), var.detach()


def frelu_inference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """max(x, DepthwiseConv3x3(x)); arguments and errors are those of :func:`frelu`.

    A batch norm with fixed statistics is folded into ``weight`` and ``bias`` by the caller.
    """
    _check_arguments(x, weight=weight, bias=bias)
    return torch.ops.pwlu_det.frelu_inference(x, weight, bias)


def _check_arguments(x: Tensor, **parameters: Tensor) -> None:
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


@torch.library.impl("pwlu_det::frelu", "CompositeExplicitAutograd")
def _frelu(x, weight, bias, norm_weight, norm_bias, eps):
    conv = _like(x, _convolve(x, weight, bias))
    wide, norm_weight, norm_bias = _widen(conv, norm_weight, norm_bias)
    var, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
    normed = (wide - _channel(mean)) * _channel((var + eps).rsqrt() * norm_weight) + _channel(norm_bias)
    return _like(x, torch.maximum(x, normed.to(x.dtype))), conv, mean, var


@torch.library.impl("pwlu_det::frelu_backward", "CompositeExplicitAutograd")
def _frelu_backward(grad, x, conv, mean, var, weight, bias, norm_weight, norm_bias, eps):
    parameters = (weight, bias, norm_weight, norm_bias)
    wide, g, conv, weight, gamma, beta = _widen(x, grad, conv, weight, norm_weight, norm_bias)
    rstd = (var + eps).rsqrt()
    normal = (conv - _channel(mean)) * _channel(rstd)
    to_norm = torch.where(normal * _channel(gamma) + _channel(beta) > wide, g, 0.0)
    grad_beta, grad_gamma = to_norm.sum((0, 2, 3)), (to_norm * normal).sum((0, 2, 3))
    # The batch norm's backward: the mean and the variance depend on every element, too.
    count = x.numel() // x.shape[1]
    centred = to_norm - _channel(grad_beta / count) - normal * _channel(grad_gamma / count)
    by_x, *by_conv = _convolve_backward(centred * _channel(gamma * rstd), wide, weight)
    grads = (*by_conv, grad_gamma, grad_beta)
    return _like(x, g - to_norm + by_x), *(v.to(p.dtype) for v, p in zip(grads, parameters))


@torch.library.impl("pwlu_det::frelu_inference", "CompositeExplicitAutograd")
def _inference(x, weight, bias):
    return _like(x, torch.maximum(x, _convolve(x, weight, bias).to(x.dtype)))


@torch.library.impl("pwlu_det::frelu_inference_backward", "CompositeExplicitAutograd")
def _inference_backward(grad, x, y, weight, bias):
    wide, g, wide_weight = _widen(x, grad, weight)
    to_conv = torch.where(y > x, g, 0.0)
    by_x, by_weight, by_bias = _convolve_backward(to_conv, wide, wide_weight)
    return _like(x, g - to_conv + by_x), by_weight.to(weight.dtype), by_bias.to(bias.dtype)


# --- fake kernels -------------------------------------------------------------------------------


@torch.library.register_fake("pwlu_det::frelu")
def _frelu_fake(x, *_others):
    dtype = torch.promote_types(x.dtype, torch.float32)
    statistics = (x.new_empty(x.shape[1], dtype=dtype) for _ in range(2))
    return torch.empty_like(x), torch.empty_like(x), *statistics


@torch.library.register_fake("pwlu_det::frelu_backward")
def _frelu_backward_fake(_grad, x, _conv, _mean, _var, *others):
    *parameters, _eps = others
    return torch.empty_like(x), *(p.new_empty(p.shape) for p in parameters)


@torch.library.register_fake("pwlu_det::frelu_inference")
def _inference_fake(x, _weight, _bias):
    return torch.empty_like(x)


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
