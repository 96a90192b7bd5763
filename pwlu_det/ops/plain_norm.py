"""A norm followed by an activation in plain torch: the definition of the op, and its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pwlu_det.ops.library import compute_dtype

RELU = ("relu", "pwlu_phase1")
"""The names under which the activation is ReLU."""


def _channel(values: Tensor, x: Tensor) -> Tensor:
    """``[C]`` as ``[C, 1, ...]``, in the dtype of ``x``."""
    return values.to(x.dtype).view(-1, *[1] * (x.dim() - 2))


def _sum(values: Tensor) -> Tensor:
    return values.sum([d for d in range(values.dim()) if d != 1])


def _count(x: Tensor) -> int:
    return max(1, x.numel() // x.shape[1])


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance, ``[C]``; zeros, which are still functions of x, if it is empty."""
    mean = _sum(x) / _count(x)
    return mean, _sum((x - _channel(mean, x)).square()) / _count(x)


def _unchanged(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    return mean, var


class Norm:
    """A norm in plain torch, differentiable, applied to ``x`` in the compute dtype."""

    def __init__(self, x: Tensor, norm: Sequence[Tensor], eps: float, pooled: Callable = _unchanged):
        self.x = x.to(compute_dtype(x.dtype))
        weight, bias, *given = norm
        if given:
            self.mean, self.var = (value.detach() for value in given)
        else:
            self.mean, self.var = pooled(*mean_and_variance(self.x))
        self.rstd = (self.var.to(self.x.dtype) + eps).rsqrt()
        self.normal = (self.x - _channel(self.mean, self.x)) * _channel(self.rstd, self.x)
        self.weight = _channel(weight, self.x)
        self.output = self.normal * self.weight + _channel(bias, self.x)

    def backward(self, grad: Tensor, batch_statistics: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, weight and bias."""
        by_weight, by_bias = _sum(grad * self.normal), _sum(grad)
        if batch_statistics:  # they depend on every element, too
            count = _count(grad)
            mean = self.normal * _channel(by_weight / count, grad) + _channel(by_bias / count, grad)
            grad = grad - mean
        return grad * self.weight * _channel(self.rstd, grad), by_weight, by_bias


def apply_norms(x, norm, eps, added, added_eps, pooled: Callable = _unchanged) -> tuple[list[Norm], Tensor]:
    """The norms, and the input of the activation in the compute dtype."""
    norms = [Norm(x, norm, eps, pooled)]
    z = norms[0].output
    if len(added) == 1:
        z = z + added[0]
    elif added:
        norms.append(Norm(added[0], added[1:], added_eps, pooled))
        z = z + norms[1].output
    return norms, z


def plain_norm_activation(
    x, norm, eps, added, added_eps, activation, parameters, pooled: Callable = _unchanged
) -> tuple[Tensor, Tensor]:
    """The op, in the compute dtype. ``pooled`` maps the statistics of the batch to those that are used."""
    norms, z = apply_norms(x, norm, eps, added, added_eps, pooled)
    y = z.relu() if activation in RELU else getattr(torch.ops.pwlu_det, activation)(z, *parameters)
    statistics = [value for own in norms for value in (own.mean, own.var) if len(norm) == 2]
    return y, torch.stack(statistics) if statistics else z.new_zeros(0, x.shape[1])
